module memtrace

go 1.21
