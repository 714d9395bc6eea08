module example.org/boiler

go 1.19
