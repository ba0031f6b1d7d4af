package netbuffer

import (
	"slices"
	"testing"
	"time"
)

// BenchmarkEvent: from a packet to its event.
func BenchmarkEvent(b *testing.B) {
	for _, way := range seeing {
		b.Run(string(way), func(b *testing.B) {
			g, _ := benchOf(b, way, 1)
			out := newSender(b, "guest0")
			var all []time.Duration
			e := uint64(0)
			for b.Loop() {
				e++
				must(b, "seal", g.Seal(e))
				time.Sleep(time.Millisecond) // the reader sleeps by then
				start := time.Now()
				out.send()
				if !within(b, g, patience) {
					b.Fatal("no event")
				}
				all = append(all, time.Since(start))
				must(b, "release", g.Release(e))
			}
			slices.Sort(all)
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(us(all[len(all)/2]), "µs-p50")
			b.ReportMetric(us(all[len(all)*99/100]), "µs-p99")
		})
	}
}

func us(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

// BenchmarkSeal: the switch of a vif with and without its watch. The rest of a
// Seal needs a plug: see TestLabWatchCost.
func BenchmarkSeal(b *testing.B) {
	for _, way := range []Way{"", EBPF, PacketSocket} {
		name := string(way)
		if way == "" {
			name = "not watched"
		}
		b.Run(name, func(b *testing.B) {
			g, _ := benchOf(b, way, 1)
			v := g.vifs[0]
			for b.Loop() {
				must(b, "switch", v.switchQueue(g.events.next()))
			}
		})
	}
}

// BenchmarkWatch: what watching alone adds to it.
func BenchmarkWatch(b *testing.B) {
	for _, way := range seeing {
		b.Run(string(way), func(b *testing.B) {
			g, bs := benchOf(b, way, 1)
			for b.Loop() {
				bs[0].Watch(0, g.events.next())
			}
		})
	}
}
