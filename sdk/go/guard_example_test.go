package memtrace_test

import (
	"log"

	"memtrace"
)

// The environment decides: PPROF_ENABLED=1 and PPROF_TOKEN or PPROF_TOKEN_FILE.
func ExampleGuard() {
	profiles, err := memtrace.Guard(nil, memtrace.GuardListen("127.0.0.1:6060"))
	if err != nil {
		log.Print(err) // the service goes on without profiles
	}
	defer profiles.Close()
	if profiles.Enabled() {
		log.Printf("profiles at http://%s/debug/pprof/", profiles.Addr())
	}
}
