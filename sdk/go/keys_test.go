package memtrace

import (
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func TestKeysOfWatchedMaps(t *testing.T) {
	get := func(query string, status int) (page keyPage) {
		t.Helper()
		w := httptest.NewRecorder()
		Handler().ServeHTTP(w, httptest.NewRequest("GET", "/debug/memtrace/keys"+query, nil))
		if w.Code != status {
			t.Fatalf("%s: status %d", query, w.Code)
		}
		if status == 200 {
			if err := json.Unmarshal(w.Body.Bytes(), &page); err != nil {
				t.Fatal(err)
			}
		}
		return page
	}
	if page := get("?n=8", 200); len(page.Maps) != 0 {
		t.Errorf("%+v", page)
	}
	// A busy machine is no lock.
	defer func(was time.Duration) { keyPatience = was }(keyPatience)
	keyPatience = time.Minute
	cache := map[string]int{"G01X10.5": 1, "G01X10.50": 2, strings.Repeat("x", 1<<20): 3}
	asked, locked := 0, make(chan struct{})
	defer close(locked)
	forget := WatchMap("nc.(*Cache)", func(n int) ([]string, int) { asked++; return Keys(cache, n) })
	defer WatchMap("nc.panics", func(int) ([]string, int) { panic("on purpose") })()
	if asked != 0 {
		t.Error("a key was taken before anybody asked")
	}
	page := get("?n=8", 200)
	if len(page.Maps) != 2 || page.Maps[0].Owner != "nc.(*Cache)" || page.Maps[0].Size != 3 || len(page.Maps[0].Keys) != 3 {
		t.Fatalf("%+v", page)
	}
	for _, key := range page.Maps[0].Keys {
		if len(key) > maxKeyLen {
			t.Errorf("a key of %d bytes", len(key))
		}
	}
	if page := get("?n=2", 200); len(page.Maps[0].Keys) != 2 {
		t.Errorf("%+v", page)
	}
	for _, bad := range []string{"", "?n=0", "?n=33", "?n=x"} {
		get(bad, 400)
	}
	forget()
	// A map whose lock nobody gives back holds up one answer, not the next one.
	defer WatchMap("nc.locked", func(int) ([]string, int) { <-locked; return nil, 0 })()
	keyPatience = 10 * time.Millisecond
	get("?n=1", 200)
	keyPatience = time.Minute
	if page := get("?n=1", 200); fmt.Sprint(page.Maps) != "[{nc.panics 0 []}]" {
		t.Errorf("%+v", page)
	}
}
