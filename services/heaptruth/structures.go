package main

import (
	"fmt"
	"strings"
	"sync"
	"unsafe"
)

// structure is what is true of one part of the heap.
type structure struct {
	Name string `json:"name"`
	// Root is the variable, or the function of the goroutine, that alone holds it.
	Root string `json:"root"`
	// First is the address of the object that the root leads to.
	First string `json:"first"`
	// Types are the objects by type; what a map, a channel or a pool allocates for
	// itself is under the name of its type. A slice's array is []T, of a string: string.
	Types    map[string]tally `json:"types"`
	Objects  uint64           `json:"objects"`
	Retained uint64           `json:"retained"`
	// Markers are addresses of some more objects.
	Markers map[string]string `json:"markers,omitempty"`
	// Used and Peak are entries now and at most, of a map.
	Used *int `json:"used,omitempty"`
	Peak *int `json:"peak,omitempty"`
}

func newStructure(name, root string) *structure {
	return &structure{Name: name, Root: root, Types: map[string]tally{}, Markers: map[string]string{}}
}

func (s *structure) add(kind string, n int, each uint64) {
	s.addTally(kind, tally{uint64(n), uint64(n) * each})
}

func (s *structure) addTally(kind string, more tally) {
	t := s.Types[kind]
	t.Objects += more.Objects
	t.Bytes += more.Bytes
	s.Types[kind] = t
	s.Objects += more.Objects
	s.Retained += more.Bytes
}

func (s *structure) mark(name string, at unsafe.Pointer) { s.Markers[name] = address(at) }

func address(at unsafe.Pointer) string { return fmt.Sprintf("0x%x", uintptr(at)) }

// Node is one of a list.
type Node struct {
	Value uint64
	Next  *Node
	Pad   [3]uint64
}

// Branch is one of a tree that knows its parent.
type Branch struct {
	Parent, Left, Right *Branch
	Key                 uint64
}

// Value is what the map of names leads to.
type Value struct {
	Count uint64
	Text  [5]uint64
	Next  *Value
}

// Entry lies in the map of numbers itself.
type Entry struct {
	A, B uint64
	Leaf *Leaf
}

// Leaf is a small object with a pointer.
type Leaf struct {
	A, B uint64
	Next *Leaf
}

// Cell lies in a grid.
type Cell struct {
	X, Y uint64
}

// Link is the named interface of the ring.
type Link interface{ next() any }

// Near and Far take turns in the ring; one leads on by any, the other by Link.
type Near struct {
	Next any
	Pad  [2]uint64
}

// Far see [Near].
type Far struct {
	Next Link
	Pad  [6]uint64
}

func (n *Near) next() any { return n.Next }
func (f *Far) next() any  { return f.Next }

// Job waits in a channel.
type Job struct {
	Number uint64
	Leaf   *Leaf
	Pad    [4]uint64
}

// Tick lies in a channel's buffer.
type Tick struct{ At, Number uint64 }

// State is shared by two closures.
type State struct {
	Count uint64
	Leaf  *Leaf
}

// Block is alive by a pointer to one of its rows only.
type Block struct {
	Head [8]uint64
	Rows [16]Row
}

// Row lies in a [Block].
type Row struct {
	Value uint64
	Leaf  *Leaf
	Pad   [2]uint64
}

// Wide has more than 512 bytes and few pointers.
type Wide struct {
	Refs [4]*Leaf
	Pad  [75]uint64
}

// Dense is pointers all over, over more than 1 KiB.
type Dense struct{ Refs [200]*Leaf }

// Brim is as large as a small object with pointers can be.
type Brim struct{ Refs [4095]*Leaf }

// Vast has spans of its own.
type Vast struct{ Refs [5000]*Leaf }

// Big holds the large ones.
type Big struct {
	Wides  []*Wide
	Denses []*Dense
	Brim   *Brim
	Vast   *Vast
}

// Buffer is kept in a pool.
type Buffer struct {
	Used uint64
	Leaf *Leaf
	Room [256]byte
}

// Shared is held by two.
type Shared struct {
	Value uint64
	Next  *Shared
}

// Owner holds objects with another owner.
type Owner struct {
	Both *Shared
	Own  *Leaf
	Pad  [4]uint64
}

// Handle has a finalizer and leads nowhere.
type Handle struct {
	Number uint64
	Next   *Handle
	Pad    [2]uint64
}

// Closer has a finalizer, which needs what it leads to.
type Closer struct {
	Number uint64
	Needs  *Needed
	Pad    [2]uint64
}

// Needed is reached by a [Closer] and by its finalizer: neither retains it.
type Needed struct {
	Leaf *Leaf
	Pad  [11]uint64
}

// Cleaned has a cleanup where there are any.
type Cleaned struct {
	Number uint64
	Next   *Cleaned
	Pad    [6]uint64
}

// Dead is what nobody holds.
type Dead struct {
	Number uint64
	Next   *Dead
	Pad    [7]uint64
}

// The roots, one for each structure.
var (
	list     *Node
	tree     *Branch
	byName   map[string]*Value
	byNumber map[int]Entry
	emptied  map[uint64]*Value
	grid     [][]Cell
	ring     Link
	queue    chan *Job
	ticks    chan Tick
	counters []func() uint64
	inner    []*Row
	big      *Big
	texts    []string
	blobs    [][]byte
	pool     sync.Pool
	left     *Owner
	right    *Owner
	handles  []*Handle
	closers  []*Closer
	cleaned  []*Cleaned
)

func leaves(n int) *Leaf {
	var first *Leaf
	for i := 0; i < n; i++ {
		first = &Leaf{A: uint64(i), Next: first}
	}
	return first
}

func buildList(scale int) *structure {
	n := 1000 * scale
	for i := 0; i < n; i++ {
		list = &Node{Value: uint64(i), Next: list}
	}
	s := newStructure("list", "main.list")
	s.First = address(unsafe.Pointer(list))
	s.mark("second", unsafe.Pointer(list.Next))
	s.add("main.Node", n, sizeOf[Node]())
	return s
}

func buildTree(scale int) *structure {
	depth := 9
	for n := scale; n > 1; n /= 2 {
		depth++
	}
	n := 1<<depth - 1
	var all []*Branch
	for i := 0; i < n; i++ {
		b := &Branch{Key: uint64(i)}
		if i > 0 {
			b.Parent = all[(i-1)/2]
			if i%2 == 1 {
				b.Parent.Left = b
			} else {
				b.Parent.Right = b
			}
		}
		all = append(all, b)
	}
	tree = all[0]
	s := newStructure("tree", "main.tree")
	s.First = address(unsafe.Pointer(tree))
	s.mark("left", unsafe.Pointer(tree.Left))
	s.mark("leaf", unsafe.Pointer(all[n-1]))
	s.add("main.Branch", n, sizeOf[Branch]())
	return s
}

// key is a name that is an object of its own.
func key(i int) string { return fmt.Sprintf("the name of entry %08d", i) }

func buildByName(scale int) *structure {
	n := 700 * scale
	s := newStructure("named map", "main.byName")
	all := live(func() {
		byName = map[string]*Value{}
		for i := 0; i < n; i++ {
			byName[key(i)] = &Value{Count: uint64(i)}
		}
	})
	s.First = mapAddress(byName)
	s.mark("value", unsafe.Pointer(byName[key(3)]))
	s.add("main.Value", n, sizeOf[Value]())
	s.add("string", n, sizeOfArray[byte](len(key(0))))
	s.addTally("map[string]*main.Value", all.minus(tally{s.Objects, s.Retained}))
	s.Used, s.Peak = &n, &n
	return s
}

func buildByNumber(scale int) *structure {
	n := 300 * scale
	s := newStructure("numbered map", "main.byNumber")
	all := live(func() {
		byNumber = map[int]Entry{}
		for i := 0; i < n; i++ {
			byNumber[i] = Entry{A: uint64(i), Leaf: leaves(1)}
		}
	})
	s.First = mapAddress(byNumber)
	s.mark("leaf", unsafe.Pointer(byNumber[7].Leaf))
	s.add("main.Leaf", n, sizeOf[Leaf]())
	s.addTally("map[int]main.Entry", all.minus(tally{s.Objects, s.Retained}))
	s.Used, s.Peak = &n, &n
	return s
}

func buildEmptied(scale int) *structure {
	peak, used := 5000*scale, 3
	s := newStructure("emptied map", "main.emptied")
	all := live(func() {
		emptied = map[uint64]*Value{}
		for i := 0; i < peak; i++ {
			emptied[uint64(i)] = &Value{}
		}
		for i := used; i < peak; i++ {
			delete(emptied, uint64(i))
		}
	})
	s.First = mapAddress(emptied)
	s.add("main.Value", used, sizeOf[Value]())
	s.addTally("map[uint64]*main.Value", all.minus(tally{s.Objects, s.Retained}))
	s.Used, s.Peak = &used, &peak
	return s
}

// mapAddress is where a map's header lies.
func mapAddress[K comparable, V any](m map[K]V) string {
	return address(*(*unsafe.Pointer)(unsafe.Pointer(&m)))
}

func buildGrid(scale int) *structure {
	n := 40 * scale
	s := newStructure("grid", "main.grid")
	grid = make([][]Cell, n)
	for i := range grid {
		grid[i] = make([]Cell, 10+i%5)
		s.add("[]main.Cell", 1, sizeOfArray[Cell](10+i%5))
	}
	s.First = address(unsafe.Pointer(&grid[0]))
	s.mark("row", unsafe.Pointer(&grid[4][0]))
	s.add("[][]main.Cell", 1, sizeOfArray[[]Cell](n))
	return s
}

func buildRing(scale int) *structure {
	n := 100 * scale
	// No assertion of an interface here: the runtime would keep a table of it on the heap.
	first := &Near{}
	near := first
	for i := 1; i < n; i++ {
		near = &Near{Next: &Far{Next: near}}
	}
	last := &Far{Next: near}
	first.Next = last
	ring = first
	s := newStructure("ring", "main.ring")
	s.First = address(unsafe.Pointer(first))
	s.mark("last", unsafe.Pointer(last))
	s.add("main.Near", n, sizeOf[Near]())
	s.add("main.Far", n, sizeOf[Far]())
	return s
}

func buildQueue(scale int) *structure {
	room, used := 64*scale, 40*scale
	s := newStructure("queue", "main.queue")
	s.addTally("chan *main.Job", allocated(func() { queue = make(chan *Job, room) }))
	for i := 0; i < used; i++ {
		queue <- &Job{Number: uint64(i), Leaf: leaves(1)}
	}
	s.First = address(*(*unsafe.Pointer)(unsafe.Pointer(&queue)))
	s.add("main.Job", used, sizeOf[Job]())
	s.add("main.Leaf", used, sizeOf[Leaf]())
	s.Used, s.Peak = &used, &room
	return s
}

func buildTicks(scale int) *structure {
	room, used := 200*scale, 11
	s := newStructure("ticks", "main.ticks")
	s.addTally("chan main.Tick", allocated(func() { ticks = make(chan Tick, room) }))
	for i := 0; i < used; i++ {
		ticks <- Tick{Number: uint64(i)}
	}
	s.First = address(*(*unsafe.Pointer)(unsafe.Pointer(&ticks)))
	s.Used, s.Peak = &used, &room
	return s
}

//go:noinline
func newCounter() (up, down func() uint64) {
	state := State{Leaf: leaves(2)}
	up = func() uint64 { state.Count++; return state.Count }
	down = func() uint64 { state.Count--; return state.Count + state.Leaf.A }
	return
}

func buildCounters(scale int) *structure {
	n := 20 * scale
	counters = make([]func() uint64, 0, 2*n)
	for i := 0; i < n; i++ {
		up, down := newCounter()
		counters = append(counters, up, down)
	}
	type closure struct {
		code  uintptr
		state *State
	}
	s := newStructure("counters", "main.counters")
	s.First = address(unsafe.Pointer(&counters[0]))
	s.add("[]func() uint64", 1, sizeOfArray[func() uint64](2*n))
	s.add("main.newCounter.func1", n, sizeOf[closure]())
	s.add("main.newCounter.func2", n, sizeOf[closure]())
	s.add("main.State", n, sizeOf[State]())
	s.add("main.Leaf", 2*n, sizeOf[Leaf]())
	return s
}

func buildInner(scale int) *structure {
	n := 30 * scale
	inner = make([]*Row, n)
	for i := range inner {
		b := &Block{}
		b.Rows[3].Leaf = leaves(1)
		inner[i] = &b.Rows[5]
	}
	s := newStructure("inner", "main.inner")
	s.First = address(unsafe.Pointer(&inner[0]))
	s.mark("inside a block", unsafe.Pointer(inner[2]))
	s.add("[]*main.Row", 1, sizeOfArray[*Row](n))
	s.add("main.Block", n, sizeOf[Block]())
	s.add("main.Leaf", n, sizeOf[Leaf]())
	return s
}

func buildBig(scale int) *structure {
	n := 10 * scale
	big = &Big{Wides: make([]*Wide, n), Denses: make([]*Dense, n), Brim: &Brim{}, Vast: &Vast{}}
	leaf := 0
	one := func() *Leaf { leaf++; return leaves(1) }
	for i := range big.Wides {
		big.Wides[i] = &Wide{Refs: [4]*Leaf{3: one()}}
		// Where a mask is cut short, the last ones are lost first.
		big.Denses[i] = &Dense{Refs: [200]*Leaf{0: one(), 127: one(), 128: one(), 199: one()}}
	}
	big.Brim.Refs[4094] = one()
	big.Vast.Refs[1] = one()
	big.Vast.Refs[4999] = one()
	s := newStructure("big", "main.big")
	s.First = address(unsafe.Pointer(big))
	s.mark("wide", unsafe.Pointer(big.Wides[1]))
	s.mark("dense", unsafe.Pointer(big.Denses[1]))
	s.mark("vast", unsafe.Pointer(big.Vast))
	s.add("main.Big", 1, sizeOf[Big]())
	s.add("[]*main.Wide", 1, sizeOfArray[*Wide](n))
	s.add("[]*main.Dense", 1, sizeOfArray[*Dense](n))
	s.add("main.Wide", n, sizeOf[Wide]())
	s.add("main.Dense", n, sizeOf[Dense]())
	s.add("main.Brim", 1, sizeOf[Brim]())
	s.add("main.Vast", 1, sizeOf[Vast]())
	s.add("main.Leaf", leaf, sizeOf[Leaf]())
	return s
}

func buildTexts(scale int) *structure {
	n := 100 * scale
	s := newStructure("texts", "main.texts")
	texts = make([]string, n)
	for i := range texts {
		texts[i] = strings.Repeat("x", 20+i)
		s.add("string", 1, sizeOfArray[byte](20+i))
	}
	s.First = address(unsafe.Pointer(&texts[0]))
	s.add("[]string", 1, sizeOfArray[string](n))
	return s
}

func buildBlobs(scale int) *structure {
	n := 20 * scale
	s := newStructure("blobs", "main.blobs")
	blobs = make([][]byte, n)
	for i := range blobs {
		blobs[i] = make([]byte, 4000+1000*(i%40))
		s.add("[]uint8", 1, sizeOfArray[byte](4000+1000*(i%40)))
	}
	s.First = address(unsafe.Pointer(&blobs[0]))
	s.mark("blob", unsafe.Pointer(&blobs[3][0]))
	s.add("[][]uint8", 1, sizeOfArray[[]byte](n))
	return s
}

func buildHandles(scale int) *structure {
	n := 15 * scale
	handles = make([]*Handle, n)
	for i := range handles {
		handles[i] = &Handle{Number: uint64(i)}
		finalize(handles[i])
	}
	s := newStructure("handles", "main.handles")
	s.First = address(unsafe.Pointer(&handles[0]))
	s.add("[]*main.Handle", 1, sizeOfArray[*Handle](n))
	s.add("main.Handle", n, sizeOf[Handle]())
	return s
}

// buildClosers is also told what the finalizers need.
func buildClosers(scale int, needed map[string]tally) *structure {
	n := 15 * scale
	closers = make([]*Closer, n)
	for i := range closers {
		closers[i] = &Closer{Needs: &Needed{Leaf: leaves(1)}}
		finalizeCloser(closers[i])
	}
	s := newStructure("closers", "main.closers")
	s.First = address(unsafe.Pointer(&closers[0]))
	s.add("[]*main.Closer", 1, sizeOfArray[*Closer](n))
	s.add("main.Closer", n, sizeOf[Closer]())
	needed["main.Needed"] = tally{uint64(n), uint64(n) * sizeOf[Needed]()}
	needed["main.Leaf"] = tally{uint64(n), uint64(n) * sizeOf[Leaf]()}
	return s
}

func buildCleaned(scale int) *structure {
	n := 15 * scale
	cleaned = make([]*Cleaned, n)
	for i := range cleaned {
		cleaned[i] = &Cleaned{Number: uint64(i)}
		addCleanup(cleaned[i])
	}
	s := newStructure("cleaned", "main.cleaned")
	s.First = address(unsafe.Pointer(&cleaned[0]))
	s.add("[]*main.Cleaned", 1, sizeOfArray[*Cleaned](n))
	s.add("main.Cleaned", n, sizeOf[Cleaned]())
	return s
}

// buildOwners gives two structures, and what they share.
func buildOwners(scale int) (own []*structure, both map[string]tally) {
	n := 50 * scale
	var shared *Shared
	for i := 0; i < n; i++ {
		shared = &Shared{Value: uint64(i), Next: shared}
	}
	left = &Owner{Both: shared, Own: leaves(3)}
	right = &Owner{Both: shared.Next, Own: leaves(4)}
	l, r := newStructure("left", "main.left"), newStructure("right", "main.right")
	l.First, r.First = address(unsafe.Pointer(left)), address(unsafe.Pointer(right))
	for _, s := range []*structure{l, r} {
		s.add("main.Owner", 1, sizeOf[Owner]())
	}
	l.add("main.Leaf", 3, sizeOf[Leaf]())
	// The first of the shared is behind the one the right owner has.
	l.add("main.Shared", 1, sizeOf[Shared]())
	r.add("main.Leaf", 4, sizeOf[Leaf]())
	r.mark("shared", unsafe.Pointer(shared.Next))
	return []*structure{l, r}, map[string]tally{"main.Shared": {uint64(n - 1), uint64(n-1) * sizeOf[Shared]()}}
}

const pooled = 6

// poolContent is what [fillPool] will put into the pool, held until then.
var poolContent [pooled]*Buffer

// Others are filled before the pool, to see what one of them takes.
var twins [6]sync.Pool

func buildPool() *structure {
	for i := range poolContent {
		poolContent[i] = &Buffer{Leaf: leaves(1)}
	}
	var takes tally
	for i := range twins {
		takes = allocated(func() { fillPool(&twins[i]) })
	}
	s := newStructure("pool", "main.pool")
	s.addTally("sync.Pool", takes)
	s.mark("content", unsafe.Pointer(poolContent[2]))
	s.add("main.Buffer", pooled, sizeOf[Buffer]())
	s.add("main.Leaf", pooled, sizeOf[Leaf]())
	return s
}

// fillPool puts the content into a pool: a collection moves it, and the next one ends it.
func fillPool(to *sync.Pool) {
	for _, b := range poolContent {
		to.Put(b)
	}
}

//go:noinline
func makeDead(n int) *Dead {
	var first *Dead
	for i := 0; i < n; i++ {
		first = &Dead{Number: uint64(i), Next: first}
	}
	return first
}
