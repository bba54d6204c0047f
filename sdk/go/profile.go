package memtrace

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// WriteHeapProfile writes the heap profile of this process with its tags as labels:
// `go tool pprof -tags` and `-tagfocus` know them.
func WriteHeapProfile(w io.Writer) error {
	profile, err := heapProfile()
	if err != nil {
		return err
	}
	return LabelProfile(w, profile)
}

// LabelProfile copies a profile that this process has just taken (any of runtime/pprof,
// as protocol buffer) from r to w and gives the samples that were taken in a [Do] the
// label "tag". The frames of Do are left out.
//
// A profile of another process, or an old one, does not get its names this way: use
// `memtrace convert` on what `memtrace watch --store` has kept.
func LabelProfile(w io.Writer, r io.Reader) error {
	message, err := readProfile(r)
	if err != nil {
		return err
	}
	p, err := parseProfile(message)
	if err != nil {
		return err
	}
	labelled := p.label(tagName)
	z, err := gzip.NewWriterLevel(w, gzip.BestSpeed)
	if err != nil {
		return err
	}
	if _, err := z.Write(labelled); err != nil {
		return err
	}
	return z.Close()
}

// maxProfile bounds what is unpacked, bytes.
const maxProfile = 1 << 30

func readProfile(r io.Reader) ([]byte, error) {
	packed, err := io.ReadAll(io.LimitReader(r, maxProfile))
	if err != nil {
		return nil, err
	}
	if !bytes.HasPrefix(packed, []byte{0x1f, 0x8b}) {
		return packed, nil
	}
	z, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(z, maxProfile))
}

// Numbers of fields in profile.proto.
const (
	profileSample   = 2
	profileLocation = 4
	profileFunction = 5
	profileString   = 6

	sampleLocation = 1
	sampleValue    = 2
	sampleLabel    = 3
	locationID     = 1
	locationLine   = 4
	lineFunction   = 1
	functionID     = 1
	functionName   = 2
	labelName      = 1
	labelString    = 2
)

// profile is a message as far as tags are concerned; the rest stays as it is.
type profile struct {
	rest    []byte // all fields but the samples
	samples [][]byte
	strings int // in the table
	// What the location is of Do: its digit on the stack, or the function itself.
	frames map[uint64]tagLocation
}

type tagLocation struct{ kind, digit int }

const doFrame = 3 // beside highFrame and lowFrame

var errProfile = errors.New("memtrace: not a profile in protocol buffer form")

func parseProfile(message []byte) (*profile, error) {
	p := &profile{frames: make(map[uint64]tagLocation)}
	var texts [][]byte
	names := make(map[uint64]uint64)     // function → string
	locations := make(map[uint64]uint64) // location → function that it lies in
	err := fields(message, func(field int, number uint64, body, whole []byte) error {
		switch field {
		case profileSample:
			p.samples = append(p.samples, body)
			return nil
		case profileString:
			texts = append(texts, body)
		case profileFunction:
			var id, name uint64
			err := fields(body, func(field int, number uint64, _, _ []byte) error {
				switch field {
				case functionID:
					id = number
				case functionName:
					name = number
				}
				return nil
			})
			if err != nil {
				return err
			}
			names[id] = name
		case profileLocation:
			var id, function uint64
			err := fields(body, func(field int, number uint64, body, _ []byte) error {
				switch field {
				case locationID:
					id = number
				case locationLine: // the last is the function itself, those before were inlined
					return fields(body, func(field int, number uint64, _, _ []byte) error {
						if field == lineFunction {
							function = number
						}
						return nil
					})
				}
				return nil
			})
			if err != nil {
				return err
			}
			locations[id] = function
		}
		p.rest = append(p.rest, whole...)
		return nil
	})
	if err != nil {
		return nil, err
	}
	if len(texts) == 0 {
		return nil, errProfile
	}
	p.strings = len(texts)
	for id, function := range locations {
		name, ok := names[function]
		if !ok || name >= uint64(len(texts)) {
			continue
		}
		text := string(texts[name])
		if kind, digit := tagFrame(text); kind != noFrame {
			p.frames[id] = tagLocation{kind, digit}
		} else if text == ourPackage+".Do" {
			p.frames[id] = tagLocation{kind: doFrame}
		}
	}
	return p, nil
}

// label renders the message with labels in place of frames.
func (p *profile) label(name func(id int) string) []byte {
	out := append(make([]byte, 0, len(p.rest)+len(p.rest)/4), p.rest...)
	table := map[string]uint64{}
	text := func(s string) uint64 {
		at, ok := table[s]
		if !ok {
			at = uint64(p.strings + len(table))
			table[s] = at
			out = appendBytes(out, profileString, []byte(s))
		}
		return at
	}
	for _, sample := range p.samples {
		rewritten, id := p.strip(sample)
		if id >= 0 {
			label := appendNumber(nil, labelName, text(labelKey))
			label = appendNumber(label, labelString, text(name(id)))
			rewritten = appendBytes(rewritten, sampleLabel, label)
		}
		out = appendBytes(out, profileSample, rewritten)
	}
	return out
}

// strip takes the frames of Do off a sample's stack and returns the number that the
// innermost spell, -1 where there are none.
func (p *profile) strip(sample []byte) ([]byte, int) {
	var stack, rest []byte
	id := -1
	err := p.walk(sample,
		func(location uint64) { stack = binary.AppendUvarint(stack, location) },
		func(n int) {
			if id < 0 {
				id = n
			}
		},
		func(field []byte) { rest = append(rest, field...) })
	if err != nil || id < 0 {
		return sample, -1
	}
	return append(appendBytes(nil, sampleLocation, stack), rest...), id
}

// walk goes through a sample: locations that do not belong to Do, the numbers that
// frames of Do spell (the innermost first), and the fields besides, whole.
func (p *profile) walk(sample []byte, location func(uint64), tag func(int), other func([]byte)) error {
	low := -1
	step := func(n uint64) {
		frame, ok := p.frames[n]
		switch {
		case !ok:
			low = -1
			location(n)
		case frame.kind == lowFrame:
			low = frame.digit
		case frame.kind == highFrame && low >= 0:
			tag(frame.digit<<6 | low)
			low = -1
		}
	}
	return fields(sample, func(field int, number uint64, body, whole []byte) error {
		switch {
		case field != sampleLocation:
			other(whole)
		case body == nil:
			step(number)
		default:
			return numbers(body, step)
		}
		return nil
	})
}

// fields calls f for each field of a message: its number, its value where it is a
// number, its body (not nil) where it has a length, and all its bytes.
func fields(message []byte, f func(field int, number uint64, body, whole []byte) error) error {
	for len(message) > 0 {
		start := message
		key, n := binary.Uvarint(message)
		if n <= 0 || key>>3 == 0 || key>>3 > 1<<29 {
			return errProfile
		}
		message = message[n:]
		var number uint64
		var body []byte
		switch key & 7 {
		case 0:
			if number, n = binary.Uvarint(message); n <= 0 {
				return errProfile
			}
		case 1:
			n = 8
		case 5:
			n = 4
		case 2:
			length, size := binary.Uvarint(message)
			if size <= 0 || length > uint64(len(message)-size) {
				return errProfile
			}
			n = size + int(length)
			body = message[size:n:n]
		default:
			return fmt.Errorf("%w (wire type %d)", errProfile, key&7)
		}
		if n > len(message) {
			return errProfile
		}
		message = message[n:]
		if err := f(int(key>>3), number, body, start[:len(start)-len(message)]); err != nil {
			return err
		}
	}
	return nil
}

func appendNumber(b []byte, field int, n uint64) []byte {
	return binary.AppendUvarint(binary.AppendUvarint(b, uint64(field)<<3), n)
}

func appendBytes(b []byte, field int, body []byte) []byte {
	b = binary.AppendUvarint(binary.AppendUvarint(b, uint64(field)<<3|2), uint64(len(body)))
	return append(b, body...)
}

// liveIDs returns the numbers of the tags that hold memory, as far as the sampled
// heap profile tells.
func liveIDs() (map[int]bool, error) {
	raw, err := heapProfile()
	if err != nil {
		return nil, err
	}
	message, err := readProfile(raw)
	if err != nil {
		return nil, err
	}
	p, err := parseProfile(message)
	if err != nil {
		return nil, err
	}
	live := make(map[int]bool)
	for _, sample := range p.samples {
		inUse := false
		var ids []int
		err := p.walk(sample, func(uint64) {}, func(id int) { ids = append(ids, id) }, func(field []byte) {
			inUse = inUse || holdsMemory(field)
		})
		if err != nil {
			return nil, err
		}
		if inUse {
			for _, id := range ids {
				live[id] = true
			}
		}
	}
	return live, nil
}

// holdsMemory reports whether a field is the values of a heap sample (alloc_objects,
// alloc_space, inuse_objects, inuse_space) and the last two are not both 0.
func holdsMemory(field []byte) bool {
	var values []uint64
	// A field that breaks off tells nothing.
	_ = fields(field, func(field int, number uint64, body, _ []byte) error {
		if field != sampleValue {
			return nil
		}
		return numbers(body, func(n uint64) { values = append(values, n) })
	})
	return len(values) == 4 && (values[2] != 0 || values[3] != 0)
}

// numbers calls f for each number of a packed field.
func numbers(body []byte, f func(uint64)) error {
	for len(body) > 0 {
		n, size := binary.Uvarint(body)
		if size <= 0 {
			return errProfile
		}
		body = body[size:]
		f(n)
	}
	return nil
}
