module cnc

go 1.21
