//go:build cgo

package main

/*
#cgo LDFLAGS: -lpthread
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void block_signals(void) {
	sigset_t all;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, 0);
}

static void nap_ns(long ns) {
	struct timespec t = {0, ns}, left;
	while (clock_nanosleep(CLOCK_MONOTONIC, 0, &t, &left) == EINTR) t = left;
}

static int64_t now_ns(void) {
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

// Two threads of C that pass a number on, and memory of malloc that must stay as it is.
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t turned = PTHREAD_COND_INITIALIZER;
static uint64_t turn;
static _Atomic uint64_t c_rounds, c_faults;

static void *pass(void *which) {
	uint64_t mine = (uintptr_t)which;
	block_signals();
	for (;;) {
		pthread_mutex_lock(&lock);
		while (turn % 2 != mine) pthread_cond_wait(&turned, &lock);
		turn++;
		pthread_cond_broadcast(&turned);
		pthread_mutex_unlock(&lock);
		c_rounds++;
		if (mine) nap_ns(2000000);
	}
	return 0;
}

static void *keep(void *unused) {
	enum { n = 1 << 17 };
	uint64_t *words = malloc(n * 8);
	block_signals();
	for (uint64_t i = 0; i < n; i++) words[i] = i * 0x9e3779b97f4a7c15ULL;
	for (;;) {
		for (uint64_t i = 0; i < n; i++)
			if (words[i] != i * 0x9e3779b97f4a7c15ULL) c_faults++;
		c_rounds++;
		nap_ns(20000000);
	}
	return unused;
}

static int start(void *(*run)(void *), void *with, pthread_attr_t *attributes) {
	pthread_t thread;
	int failed = pthread_create(&thread, attributes, run, with);
	if (!failed) pthread_detach(thread);
	return failed;
}

static int live_in_c(void) {
	return start(pass, (void *)0, 0) | start(pass, (void *)1, 0) | start(keep, 0, 0);
}

// Three threads at once, for a moment.
static void *moment(void *unused) {
	nap_ns(3000000);
	return unused;
}

static int three_threads(void) {
	pthread_t threads[3];
	int failed = 0, made = 0;
	for (; made < 3 && !failed; ) {
		failed = pthread_create(&threads[made], 0, moment, 0);
		if (!failed) made++;
	}
	while (made) pthread_join(threads[--made], 0);
	return failed;
}

// A thread whose stack ends shortly below where it waits in the kernel. Below is memory with a
// pattern, or none.
enum { tiny = 32 << 10, page = 4096 };
struct small { char *memory; long left; int guarded; };

static void down(struct small *s, uint64_t seed) {
	volatile uint64_t frame[4] = {seed, ~seed, seed * 3, seed * 5};
	char *here = (char *)frame;
	if (here - (s->memory + page) > s->left + 160) {
		down(s, seed + 1);
	} else {
		struct timespec t = {0, 4000000};
		long result;
		// No frame of a function of the library in between.
		__asm__ volatile("syscall" : "=a"(result) : "a"(SYS_nanosleep), "D"(&t), "S"(0) : "rcx", "r11", "memory");
	}
	if (frame[0] != seed || frame[1] != ~seed || frame[2] != seed * 3 || frame[3] != seed * 5) c_faults++;
}

static void *small_stack(void *with) {
	struct small *s = with;
	block_signals();
	for (;;) {
		down(s, (uint64_t)s->left);
		for (int i = 0; !s->guarded && i < page; i++)
			if (s->memory[i] != (char)(i * 7)) c_faults++;
		c_rounds++;
		struct timespec t = {0, 1000000};
		long result;
		__asm__ volatile("syscall" : "=a"(result) : "a"(SYS_nanosleep), "D"(&t), "S"(0) : "rcx", "r11", "memory");
	}
	return 0;
}

static int small_stacks(void) {
	static const long left[] = {64, 200, 400, 640, 900, 1500};
	int failed = 0;
	for (int i = 0; i < 12; i++) {
		struct small *s = malloc(sizeof *s);
		s->left = left[i % 6];
		s->guarded = i >= 6;
		s->memory = mmap(0, page + tiny, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
		for (int j = 0; j < page; j++) s->memory[j] = (char)(j * 7);
		if (s->guarded) mprotect(s->memory, page, PROT_NONE);
		pthread_attr_t attributes;
		pthread_attr_init(&attributes);
		failed |= pthread_attr_setstack(&attributes, s->memory + page, tiny);
		failed |= start(small_stack, s, &attributes);
		pthread_attr_destroy(&attributes);
	}
	return failed;
}

// A child that keeps its parent's thread in vfork for a while.
static int vfork_once(long ns) {
	struct timespec t = {0, ns};
	pid_t child = vfork();
	if (child == 0) {
		syscall(SYS_nanosleep, &t, 0);
		_exit(7);
	}
	int status = 0;
	pid_t waited;
	while ((waited = waitpid(child, &status, 0)) == -1 && errno == EINTR) {}
	return child > 0 && waited == child && WIFEXITED(status) && WEXITSTATUS(status) == 7 ? 0 : -1;
}

// A loop of 1 kHz with a real-time priority: how late it was at worst.
static _Atomic int64_t lateness;

static void *real_time(void *unused) {
	block_signals();
	int64_t next = now_ns();
	for (;;) {
		next += 1000000;
		struct timespec t = {next / 1000000000, next % 1000000000};
		while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, 0) == EINTR) {}
		int64_t now = now_ns(), late = now - next;
		if (late > lateness) lateness = late;
		if (late > 1000000) next = now;
		c_rounds++;
	}
	return unused;
}

static int start_real_time(void) {
	pthread_attr_t attributes;
	struct sched_param priority = {1};
	pthread_attr_init(&attributes);
	pthread_attr_setinheritsched(&attributes, PTHREAD_EXPLICIT_SCHED);
	pthread_attr_setschedpolicy(&attributes, SCHED_FIFO);
	pthread_attr_setschedparam(&attributes, &priority);
	return start(real_time, 0, &attributes);
}

static uint64_t rounds_in_c(void) { return c_rounds; }
static uint64_t faults_in_c(void) { return c_faults; }
static int64_t take_lateness(void) { return atomic_exchange(&lateness, 0); }
*/
import "C"

import "time"

// watchC takes over what threads of C found.
func watchC() {
	faults, rounds := C.uint64_t(0), C.uint64_t(0)
	looked := time.Now()
	every(50*time.Millisecond, func() {
		if now := C.faults_in_c(); now != faults {
			fault("%d faults in memory of C", now-faults)
			faults = now
		}
		if now := C.rounds_in_c(); now != rounds {
			rounds, looked = now, time.Now()
		} else if time.Since(looked) > 20*time.Second {
			fault("the threads of C do not go on")
		}
	})
}

func done(what string, failed C.int) {
	if failed != 0 {
		fault("%s: error %d", what, failed)
	}
}

func liveInC() {
	done("threads of C", C.live_in_c())
	watchC()
}

func startsThreads() {
	every(25*time.Millisecond, func() { done("pthread_create", C.three_threads()) })
}

func smallStacksInC() {
	done("small stacks", C.small_stacks())
	watchC()
}

func vforks() {
	long := false
	every(40*time.Millisecond, func() {
		length := C.long(15_000_000)
		if long = !long; long {
			length = 300_000_000
		}
		done("vfork", C.vfork_once(length))
	})
}

func realTime() {
	done("a real-time thread", C.start_real_time())
	watchC()
}

func worstLateness() int64 { return int64(C.take_lateness()) }
