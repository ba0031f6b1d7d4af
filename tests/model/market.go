package main

import (
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"xlft/netbuffer/netbuffertest"
	"xlft/savestream"
)

// A market matches orders: each order changes two price levels of its book, is appended to a
// ledger, and is answered. What a client was told must be in the ledger for ever.
//
// In the guest's memory are, by pages: the number of orders, the book, the ledger.
type market struct {
	g    *guest
	path *netbuffertest.Path
	work time.Duration // processor time of an order
	in   chan order
	rng  *rand.Rand
	done chan struct{}

	mu       sync.Mutex
	answered []time.Duration // how long each answered order took, in the order of answers
	highest  uint64          // number of the newest order that was answered
}

type order struct {
	number uint64
	at     time.Time
}

const (
	bookPages  = 1500
	ledgerAt   = (1 + bookPages) * savestream.PageSize
	recordSize = 64
)

func newMarket(g *guest, seed uint64, work time.Duration) *market {
	m := &market{g: g, work: work, in: make(chan order, 1<<16), rng: rand.New(rand.NewPCG(seed, 2)), done: make(chan struct{})}
	m.path = netbuffertest.NewPath(m.answer)
	go m.serve()
	return m
}

// serve is the guest's program.
func (m *market) serve() {
	defer close(m.done)
	var b [recordSize]byte
	for o := range m.in {
		m.g.run.RLock()
		busy(m.work)
		for range 2 {
			binary.LittleEndian.PutUint64(b[:], m.rng.Uint64())
			m.g.write(savestream.PageSize+m.rng.Uint64N(bookPages*savestream.PageSize/16)*16, b[:16])
		}
		m.g.write(m.record(o.number), record(o.number))
		binary.LittleEndian.PutUint64(b[:], o.number)
		m.g.write(0, b[:8])
		m.path.Send(binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, o.number), uint64(o.at.UnixNano())))
		m.g.run.RUnlock()
	}
}

func (m *market) record(number uint64) uint64 { return recordAt(number, len(m.g.mem)) }

func recordAt(number uint64, memory int) uint64 {
	return ledgerAt + number*recordSize%(uint64(memory)-ledgerAt)/recordSize*recordSize
}

func record(number uint64) []byte {
	b := make([]byte, recordSize)
	for i := 0; i < recordSize; i += 8 {
		binary.LittleEndian.PutUint64(b[i:], number*0x9e3779b97f4a7c15+uint64(i))
	}
	return b
}

// answer is called when an answer leaves the host.
func (m *market) answer(b []byte) {
	now := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.highest = max(m.highest, binary.LittleEndian.Uint64(b))
	m.answered = append(m.answered, now.Sub(time.Unix(0, int64(binary.LittleEndian.Uint64(b[8:])))))
}

// order sends orders, so many a second at random times, until stop is closed, and returns
// how many.
func (m *market) order(rate float64, stop <-chan struct{}) (n uint64) {
	sender := rand.New(rand.NewPCG(uint64(rate), 3))
	next := time.Now()
	for {
		next = next.Add(time.Duration(sender.ExpFloat64() / rate * float64(time.Second)))
		if d := time.Until(next); d > 0 {
			select {
			case <-stop:
				return n
			case <-time.After(d):
			}
		}
		n++
		m.in <- order{n, next}
	}
}

// lost returns how many of the orders that were answered a memory has not.
func lost(mem []byte, highest uint64) (n uint64) {
	has := binary.LittleEndian.Uint64(mem)
	ring := (uint64(len(mem)) - ledgerAt) / recordSize
	for o := highest; o > 0 && o+ring > highest; o-- {
		at := recordAt(o, len(mem))
		if o > has || has < o+ring && !slices.Equal(mem[at:at+recordSize], record(o)) {
			n++
		}
	}
	return n
}

// percentile sorts all.
func percentile(all []time.Duration, p float64) time.Duration {
	if len(all) == 0 {
		return 0
	}
	slices.Sort(all)
	return all[min(len(all)-1, int(p*float64(len(all))))]
}
