package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

// setUp makes of this process what the words of -as say:
//
//	group=DIR     joins a control group
//	uid=N         is another user
//	filter        a filter ends the process at fork, wait4, close_range
//	subreaper     gets the orphans among its descendants, and waits for none
//	init          the first process of a pid namespace
//	child         a child of such a first process, which waits for this child alone
//	of-subreaper  a child of a subreaper that waits for this child alone
//
// and tighten, once it has all its threads:
//
//	pids=DIR      pids.max of this control group is what the process needs, no more
//	nproc         the same of RLIMIT_NPROC
func setUp(as string) {
	for _, word := range strings.Split(as, ",") {
		name, value, _ := strings.Cut(word, "=")
		switch name {
		case "", "pids", "nproc":
		case "group":
			must("join "+value, os.WriteFile(filepath.Join(value, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0))
		case "uid":
			uid, err := strconv.Atoi(value)
			must("uid", err)
			must("setgroups", syscall.Setgroups(nil))
			must("setgid", syscall.Setgid(uid))
			must("setuid", syscall.Setuid(uid))
		case "filter":
			must("filter", filterCalls())
		case "subreaper":
			must("subreaper", becomeSubreaper())
		case "init", "child", "of-subreaper":
			parent(name, as)
		default:
			must(word, syscall.EINVAL)
		}
	}
}

func must(what string, err error) {
	if err != nil {
		fmt.Fprintf(os.Stderr, "targets: %s: %v\n", what, err)
		os.Exit(2)
	}
}

func becomeSubreaper() error {
	const setChildSubreaper = 36
	_, _, errno := syscall.RawSyscall(syscall.SYS_PRCTL, setChildSubreaper, 1, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// parent runs this program again as the child that the word asks for, and does nothing but
// wait for it.
func parent(word, as string) {
	arguments := make([]string, 0, len(os.Args))
	for _, argument := range os.Args[1:] {
		if strings.HasPrefix(argument, "-as=") {
			rest := strings.Split(strings.TrimPrefix(argument, "-as="), ",")
			kept := rest[:0]
			for _, other := range rest {
				if other != word {
					kept = append(kept, other)
				}
			}
			if word == "child" {
				// The first process of the namespace is a parent too.
				kept = append(kept, "of-subreaper")
			}
			argument = "-as=" + strings.Join(kept, ",")
		}
		arguments = append(arguments, argument)
	}
	if word == "of-subreaper" {
		must("subreaper", becomeSubreaper())
	}
	command := exec.Command(os.Args[0], arguments...)
	command.Stdin, command.Stdout, command.Stderr = os.Stdin, os.Stdout, os.Stderr
	if word != "of-subreaper" {
		command.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}
	}
	must("start", command.Start())
	_ = command.Wait()
	os.Exit(command.ProcessState.ExitCode() & 0x7f)
}

// filterCalls installs a filter (seccomp) for all threads, as services in containers have
// one: threads may be made, processes not.
func filterCalls() error {
	const (
		load, jumpEqual, jumpSet, give = 0x20, 0x15, 0x45, 0x06
		allow, kill, fail              = 0x7fff0000, 0x80000000, 0x00050000
		number, firstArgument          = 0, 16
		clone, clone3                  = 56, 435
		wait4, waitid, closeRange      = 61, 247, 436
		cloneThread                    = 0x10000
	)
	type step struct {
		code   uint16
		yes    uint8
		no     uint8
		number uint32
	}
	steps := []step{
		{load, 0, 0, number},
		{jumpEqual, 6, 0, wait4},
		{jumpEqual, 5, 0, waitid},
		{jumpEqual, 4, 0, closeRange},
		{jumpEqual, 4, 0, clone3},
		{jumpEqual, 0, 4, clone},
		{load, 0, 0, firstArgument},
		{jumpSet, 2, 0, cloneThread},
		{give, 0, 0, kill},
		{give, 0, 0, fail | uint32(syscall.ENOSYS)},
		{give, 0, 0, allow},
	}
	program := struct {
		length uint16
		steps  unsafe.Pointer
	}{uint16(len(steps)), unsafe.Pointer(&steps[0])}
	const noNewPrivileges, setFilter, allThreads, seccomp = 38, 1, 1, 317
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if _, _, errno := syscall.RawSyscall6(syscall.SYS_PRCTL, noNewPrivileges, 1, 0, 0, 0, 0); errno != 0 {
		return errno
	}
	_, _, errno := syscall.RawSyscall(seccomp, setFilter, allThreads, uintptr(unsafe.Pointer(&program)))
	runtime.KeepAlive(steps)
	if errno != 0 {
		return errno
	}
	return nil
}

// tighten leaves no room for one task more than the process itself needs.
func tighten(as string) {
	var limit func(most int) error
	for _, word := range strings.Split(as, ",") {
		name, value, _ := strings.Cut(word, "=")
		switch name {
		case "pids":
			limit = func(most int) error {
				return os.WriteFile(filepath.Join(value, "pids.max"), []byte(strconv.Itoa(most)), 0)
			}
		case "nproc":
			limit = func(most int) error {
				const processes = 6
				bound := syscall.Rlimit{Cur: uint64(most), Max: uint64(most)}
				return syscall.Setrlimit(processes, &bound)
			}
		}
	}
	if limit == nil {
		return
	}
	most := 0
	for until := time.Now().Add(time.Second); time.Now().Before(until); {
		tasks, err := os.ReadDir("/proc/self/task")
		must("count threads", err)
		if len(tasks) > most {
			most = len(tasks)
		}
		time.Sleep(500 * time.Microsecond)
	}
	must("tighten", limit(most))
}
