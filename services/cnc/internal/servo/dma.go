package servo

import (
	"encoding/binary"
	"math"
	"runtime"
	"time"

	"cnc/internal/fault"
)

// DMABytes is the size of the buffer that a drive reads one move from.
const DMABytes = 8 << 10

// DriveCycle is the time in which a drive surely has read what it was given. Before
// that its buffer must not be freed.
const DriveCycle = 50 * time.Millisecond

// MotionBuf is memory that a drive reads. It belongs to the driver, which is C: Go's
// collector neither sees nor counts it.
type MotionBuf struct {
	memory []byte
	lost   *fault.Fault // keeps books about a buffer that nobody will close
}

// NewMotionBuffer allocates a buffer. Its owner must Close it. The finalizer is no
// substitute: it runs after some later collection, and all finalizers of a process
// share one goroutine, each waiting for the drive of the one before.
func NewMotionBuffer(size int) (*MotionBuf, error) {
	memory, err := AllocateDMA(size)
	if err != nil {
		return nil, err
	}
	b := &MotionBuf{memory: memory}
	runtime.SetFinalizer(b, (*MotionBuf).finalize)
	return b, nil
}

// Close waits for the drive and frees the memory. Only the first call does anything.
func (b *MotionBuf) Close() {
	if b.memory == nil {
		return
	}
	runtime.SetFinalizer(b, nil)
	time.Sleep(DriveCycle)
	FreeDMA(b.memory)
	b.memory = nil
}

func (b *MotionBuf) finalize() {
	size := len(b.memory)
	b.Close()
	if b.lost != nil {
		b.lost.Leaked(-nativeBytes(size), -1)
	}
}

// Drive is the driver of the servo drives.
type Drive struct {
	fault *fault.Fault
}

// NewDrive returns a driver.
func NewDrive(f *fault.Fault) *Drive { return &Drive{f} }

// Move gives a drive the set points from one position to another, and returns when it
// has read them. With fault.Finalizer active it does not wait and leaves the buffer to
// its finalizer.
func (d *Drive) Move(from, to float64) error {
	buf, err := NewMotionBuffer(DMABytes)
	if err != nil {
		return err
	}
	// Each page is written, so all of the buffer is resident.
	const n = DMABytes / 8
	for i := 0; i < n; i++ {
		point := from + (to-from)*float64(i)/(n-1)
		binary.LittleEndian.PutUint64(buf.memory[8*i:], math.Float64bits(point))
	}
	if d.fault.Active(fault.Finalizer) {
		buf.lost = d.fault
		d.fault.Leaked(nativeBytes(DMABytes), 1)
		return nil
	}
	buf.Close()
	return nil
}
