package main

func load(int) {}
