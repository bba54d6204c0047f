// Command cnc is a small CNC controller: it reads G-code, plans and interpolates
// it, drives simulated axes in a 1 kHz loop, and can be given one memory leak.
package main

import (
	"context"
	"embed"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"cnc/internal/api"
	"cnc/internal/events"
	"cnc/internal/fault"
	"cnc/internal/gcode"
	"cnc/internal/interp"
	"cnc/internal/job"
	"cnc/internal/load"
	"cnc/internal/machine"
	"cnc/internal/motion"
	"cnc/internal/planner"
	"cnc/internal/scheduler"
	"cnc/internal/servo"
	"memtrace"
)

//go:embed testdata/*.nc
var testdata embed.FS

type options struct {
	listen    string
	profiles  string // address of their own for the profiles
	audit     string // file of the log of who asked for profiles; empty: stderr
	trace     string // where the tracer's reports go; empty: no tracer
	speed     int
	load      load.Config
	leak      fault.Kind
	leakAfter time.Duration
	leakRate  int64
	fix       bool
	tasks     motion.Config
	sections  int
	keep      time.Duration // of the reports of jobs
	history   int           // samples of the drives
}

func parseFlags(args []string) (options, error) {
	var o options
	var shape, leak, rate string
	f := flag.NewFlagSet("cnc", flag.ContinueOnError)
	f.StringVar(&o.listen, "listen", "127.0.0.1:0", "`address` to serve on; port 0 picks a free one")
	f.StringVar(&o.profiles, "pprof-listen", "", "private `address` of their own for the profiles; without it they are at -listen")
	f.StringVar(&o.audit, "pprof-audit", "", "`file` to which a line is added for each access to the profiles (default stderr)")
	f.StringVar(&o.trace, "trace", "", "`file` to which memtrace adds what was newly allocated, every 30 s; - for stderr")
	f.IntVar(&o.speed, "speed", 20, "how much `faster` than real time the axes are simulated for jobs, 1 to 200")
	f.Float64Var(&o.load.Rate, "load", 2000, "`blocks` a second of self load, 0 for none")
	f.StringVar(&shape, "load-shape", "steady", "steady, ramp or sawtooth")
	f.DurationVar(&o.load.Period, "load-period", 3*time.Minute, "`time` of one ramp or sawtooth")
	f.IntVar(&o.load.CacheSize, "cache", 700, "`pieces` of 100 blocks that the tool-path cache keeps, 0 for none")
	f.StringVar(&leak, "leak", "none", "`kind` of leak: "+fault.Names())
	f.DurationVar(&o.leakAfter, "leak-after", 30*time.Second, "`time` from the start to the leak")
	f.StringVar(&rate, "leak-rate", "1MB", "`bytes` a second that leak, such as 512KB or 2MB")
	f.BoolVar(&o.fix, "fix", false, "keep the situation of the leak, or of -tasks, and put its fix in place")
	f.Float64Var(&o.tasks.Rate, "tasks", 0, "motion tasks `a second` that each axis starts and stops, up to 1000; 0 for none")
	f.IntVar(&o.sections, "tagged-jobs", 0, "`number` of jobs that do the same work at the same time, each under its own tag; up to 999")
	f.IntVar(&o.tasks.Axes, "axes", 3, "`number` of axes for -tasks, 1 to 1000")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	var err error
	if o.load.Shape, err = load.ParseShape(shape); err != nil {
		return o, err
	}
	if o.leak, err = fault.ParseKind(leak); err != nil {
		return o, err
	}
	if o.leakRate, err = fault.ParseBytes(rate); err != nil {
		return o, err
	}
	switch {
	case f.NArg() > 0:
		return o, fmt.Errorf("unexpected argument %q", f.Arg(0))
	case o.speed < 1 || o.speed > 200:
		return o, errors.New("-speed must be from 1 to 200")
	case o.load.Rate < 0 || o.load.CacheSize < 0 || o.load.Period <= 0 || o.leakAfter < 0:
		return o, errors.New("loads, sizes and times must not be negative")
	case o.tasks.Rate != 0 && !(o.tasks.Rate >= 0.01 && o.tasks.Rate <= 1000) || o.tasks.Axes < 1 || o.tasks.Axes > 1000:
		return o, errors.New("-tasks must be 0 or from 0.01 to 1000, -axes from 1 to 1000")
	case o.sections < 0 || o.sections > load.MaxSections:
		return o, fmt.Errorf("-tagged-jobs must be from 0 to %d", load.MaxSections)
	case o.leak == fault.Tag && o.sections == 0:
		return o, errors.New("-leak tag needs -tagged-jobs")
	}
	o.tasks.Recycle = o.fix
	o.load.Seed = 1
	o.keep, o.history = 5*time.Second, 4096
	return o, nil
}

func programs() (map[string]string, error) {
	files, err := fs.Glob(testdata, "testdata/*.nc")
	if err != nil {
		return nil, err
	}
	out := make(map[string]string)
	for _, name := range files {
		text, err := testdata.ReadFile(name)
		if err != nil {
			return nil, err
		}
		out[strings.TrimSuffix(strings.TrimPrefix(name, "testdata/"), ".nc")] = string(text)
	}
	return out, nil
}

// service is the controller without its HTTP listener.
type service struct {
	server  *api.Server
	machine *machine.Machine
	traffic *load.Traffic
	cache   *gcode.Cache
	workers []func(context.Context)
}

func newService(o options) (*service, error) {
	texts, err := programs()
	if err != nil {
		return nil, err
	}
	mill, limits := interp.DefaultConfig(), planner.DefaultLimits()
	flt := fault.New(o.leak, o.leakAfter, o.leakRate)
	if o.fix {
		flt.WithFix()
	}
	if o.tasks.Rate > 0 && !o.tasks.Recycle {
		flt.SetHot(motion.Hot)
	}
	mach := machine.New()
	flt.SetOnset(fault.Hang, mach.Hang)
	sched := scheduler.New(mach, 250*time.Millisecond, flt)
	loop := servo.NewLoop(limits, mill.Home)
	history := servo.NewHistory(o.history, flt)
	cache := gcode.NewCache(flt)
	bus := new(events.Bus)
	reports := job.NewReports(o.keep, flt)
	jobs := job.NewManager(mill, limits, loop, sched, reports, bus, o.speed)
	engine := load.NewEngine(o.load, texts, mill, limits, sched)
	server := api.New(api.Parts{
		Programs: texts, Jobs: jobs, Reports: reports, Bus: bus, Loop: loop, Machine: mach, Scheduler: sched,
		Engine: engine, History: history, Cache: cache, Fault: flt,
	})
	traffic := &load.Traffic{
		Fault: flt, Scheduler: sched, Cache: cache, Loop: loop, History: history, Reports: reports, Bus: bus,
		Parser: gcode.NewParser(flt), Drive: servo.NewDrive(flt), Watch: server.Watch,
		Sections: load.NewSections(o.sections, texts["gear"], flt),
	}
	tasks := func(ctx context.Context) { motion.Run(ctx, o.tasks) }
	return &service{server, mach, traffic, cache, []func(context.Context){
		loop.Run, jobs.Run, engine.Run, traffic.Run, tasks, flt.Arm,
	}}, nil
}

// mountProfiles serves /debug/pprof/ where the environment asks for it. Profiles tell
// much about a program: never without a token, never beyond private addresses.
func mountProfiles(mux *http.ServeMux, o options) (*memtrace.Endpoint, error) {
	var options []memtrace.GuardOption
	if o.profiles != "" {
		mux = nil
		options = append(options, memtrace.GuardListen(o.profiles))
	}
	if o.audit != "" {
		// Open for as long as the process runs.
		file, err := os.OpenFile(o.audit, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			return nil, err
		}
		options = append(options, memtrace.GuardAuditLog(file))
	}
	return memtrace.Guard(mux, options...)
}

// startTracer reports allocations to a file; the function that it returns ends that.
func startTracer(file string) (stop func(), err error) {
	switch file {
	case "":
		return func() {}, nil
	case "-":
		return memtrace.Start("cnc").Stop, nil
	}
	out, err := os.OpenFile(file, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	tracer := memtrace.Start("cnc", memtrace.WithWriter(out))
	return func() {
		tracer.Stop()
		out.Close()
	}, nil
}

func run(ctx context.Context, args []string) error {
	o, err := parseFlags(args)
	if err != nil {
		return err
	}
	s, err := newService(o)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", o.listen)
	if err != nil {
		return err
	}
	profiles, err := mountProfiles(s.server.Mux(), o)
	if err != nil {
		listener.Close()
		return err
	}
	defer profiles.Close()
	tracer, err := startTracer(o.trace)
	if err != nil {
		listener.Close()
		return err
	}
	defer tracer()
	defer memtrace.WatchMap("cnc/internal/gcode.(*Cache)", s.cache.SampleKeys)()
	fmt.Printf("listening http://%s pid %d", listener.Addr(), os.Getpid())
	if at := profiles.Addr(); at != nil {
		fmt.Printf(" profiles http://%s", at)
	}
	fmt.Println()

	work, stop := context.WithCancel(context.Background())
	defer stop()
	var wg sync.WaitGroup
	for _, worker := range s.workers {
		worker := worker
		wg.Add(1)
		go func() {
			defer wg.Done()
			worker(work)
		}()
	}
	web := &http.Server{Handler: s.server, ReadHeaderTimeout: 10 * time.Second}
	failed := make(chan error, 1)
	go func() { failed <- web.Serve(listener) }()
	select {
	case err = <-failed:
	case <-ctx.Done():
		grace, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		defer cancel()
		if web.Shutdown(grace) != nil {
			err = web.Close()
		}
	}
	stop()
	s.machine.Close()
	wg.Wait()
	return err
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	switch err := run(ctx, os.Args[1:]); {
	case errors.Is(err, flag.ErrHelp):
	case err != nil:
		fmt.Fprintln(os.Stderr, "cnc:", err)
		os.Exit(1)
	}
}
