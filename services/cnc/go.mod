module cnc

go 1.21

require memtrace v0.0.0

replace memtrace => ../../sdk/go
