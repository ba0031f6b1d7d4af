package processes

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/anishathalye/porcupine"
)

const (
	clients     = 12
	patience    = time.Second     // of a client; what is not answered by then may have happened
	era         = 5 * time.Second // in which a set of keys is used
	keysOfEra   = 4
	checkLimit  = 20 * time.Second // for one key
	eraPatience = era + 2*patience
)

// A history is what clients asked and heard, by key. Keys are used for an era only,
// so that few operations of a key stay unanswered: each of those doubles what a
// checker has to try.
type history struct {
	mu     sync.Mutex
	ops    map[uint64][]porcupine.Operation
	ends   map[uint64]time.Duration // when no operation of the key begins any more
	closed bool
	world  atomic.Uint64 // counts the domain's boots: what was lost with it, nobody may look for
}

type input struct {
	op       op
	key      uint64
	val, old uint64
}

type output struct {
	val     uint64
	ok      bool
	unknown bool
}

// register is the model of one key.
var register = porcupine.Model{
	Init: func() any { return uint64(0) },
	Step: func(state, in, out any) (bool, any) {
		is, i, o := state.(uint64), in.(input), out.(output)
		switch i.op {
		case read:
			return o.val == is, is
		case write:
			return o.unknown || o.val == is, i.val
		}
		swapped := is == i.old
		if !o.unknown && (o.ok != swapped || o.val != is) {
			return false, is
		}
		if swapped {
			is = i.val
		}
		return true, is
	},
	DescribeOperation: func(in, out any) string {
		i, o := in.(input), out.(output)
		heard := fmt.Sprint(o.val)
		if o.unknown {
			heard = "?"
		}
		switch i.op {
		case read:
			return fmt.Sprintf("read: %s", heard)
		case write:
			return fmt.Sprintf("write %d: was %s", i.val, heard)
		}
		return fmt.Sprintf("swap %d for %d: %v, was %s", i.old, i.val, o.ok, heard)
	},
}

var nextRequest, nextValue atomic.Uint64

// client asks again and again until stop is closed.
func (w *World) client(n int, stop <-chan struct{}) {
	rng := rand.New(rand.NewPCG(w.o.Seed, uint64(n)+1))
	known := map[uint64]uint64{} // what this client last heard of a key
	for {
		select {
		case <-stop:
			return
		case <-time.After(time.Duration(1+rng.IntN(20)) * time.Millisecond):
		}
		boot := w.history.world.Load()
		e := uint64(w.now() / era)
		key := boot<<40 + e*keysOfEra + uint64(rng.IntN(keysOfEra)) + 1 // never probe
		in := input{op: op(rng.IntN(3)), key: key, val: nextValue.Add(1), old: known[key]}
		if in.op == read {
			in.val = 0
		}
		id := nextRequest.Add(1)
		answer := make(chan reply, 1)
		w.outmu.Lock()
		w.waiting[id] = answer
		w.outmu.Unlock()
		begun := w.now()
		w.send(request{id, in.op, key, in.val, in.old})
		var out output
		ended := time.Duration(math.MaxInt64)
		select {
		case a := <-answer:
			out, ended = output{val: a.val, ok: a.ok == 1}, w.now()
			if known[key] = a.val; in.op == write || out.ok {
				known[key] = in.val
			}
		case <-time.After(patience):
			out.unknown = true
		}
		w.outmu.Lock()
		delete(w.waiting, id)
		if w.Counts.Operations++; out.unknown {
			w.Counts.Unanswered++
		}
		w.outmu.Unlock()
		if len(known) > 100 {
			clear(known)
		}
		if out.unknown && in.op == read {
			continue
		}
		w.history.add(n, in, out, begun, ended, (time.Duration(e)+1)*era)
	}
}

func (h *history) add(client int, in input, out output, begun, ended, end time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if out.unknown {
		client = clients + len(h.ops[in.key]) // its own next operation may overlap
	}
	h.ops[in.key] = append(h.ops[in.key], porcupine.Operation{ClientId: client, Input: in, Output: out, Call: int64(begun), Return: int64(ended)})
	h.ends[in.key] = end
}

// check checks the keys whose era is over, or all.
func (w *World) check(all bool) {
	h := &w.history
	h.mu.Lock()
	var due []uint64
	for k, end := range h.ends {
		if all || w.now() > end+2*patience {
			due = append(due, k)
		}
	}
	slices.Sort(due)
	take := map[uint64][]porcupine.Operation{}
	for _, k := range due {
		take[k] = h.ops[k]
		delete(h.ops, k)
		delete(h.ends, k)
	}
	h.mu.Unlock()
	for _, k := range due {
		switch porcupine.CheckOperationsTimeout(register, take[k], checkLimit) {
		case porcupine.Illegal:
			w.violate("P1", "what clients saw of register %d can't be:\n%s", k, describe(take[k]))
		case porcupine.Unknown:
			w.say("register %d: %d operations could not be checked in %v", k, len(take[k]), checkLimit)
		case porcupine.Ok:
			w.outmu.Lock()
			w.Counts.Checked += len(take[k])
			w.outmu.Unlock()
		}
	}
}

func describe(ops []porcupine.Operation) string {
	slices.SortFunc(ops, func(a, b porcupine.Operation) int { return int(a.Call - b.Call) })
	var b strings.Builder
	for _, o := range ops {
		end := "never"
		if o.Return != math.MaxInt64 {
			end = fmt.Sprintf("%.4f", time.Duration(o.Return).Seconds())
		}
		fmt.Fprintf(&b, "  %.4f to %s, client %d, %s\n", time.Duration(o.Call).Seconds(), end, o.ClientId, register.DescribeOperation(o.Input, o.Output))
	}
	return b.String()
}
