module heaptruth

go 1.21
