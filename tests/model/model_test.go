package main

import (
	"io"
	"net"
	"testing"
	"time"

	"xlft/xlft"
	"xlft/xlft/config"
)

// A link passes on what it is given, not sooner than its rate and its delay allow.
func TestLink(t *testing.T) {
	in, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	l := &link{rate: 50e6, delay: 10 * time.Millisecond}
	address, err := l.listen(in.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer l.fail()
	near, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	far, err := in.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	const size = 5 << 20 // 105 ms
	begun := time.Now()
	go func() {
		near.Write(make([]byte, size))
		near.Close()
	}()
	n, err := io.Copy(io.Discard, far)
	if err != nil || n != size {
		t.Errorf("%d bytes of %d: %v", n, size, err)
	}
	if took, least := time.Since(begun), 114*time.Millisecond; took < least {
		t.Errorf("%d bytes took %v, less than %v", size, took, least)
	}
}

// The model runs with the defaults that ship.
func TestPacing(t *testing.T) {
	c, err := config.Load("../../conf/xlft.toml")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := pacing(xlft.ModeEvent), c.For("other").Pacing; got != want || c.PageCache != pageCache {
		t.Errorf("pacing %+v, the configuration has %+v and page_cache %d", got, want, c.PageCache)
	}
}

func short() setup {
	return setup{
		rate: 1e9 / 8, rtt: time.Millisecond, pacing: pacing(xlft.ModeEvent),
		pages: 4096, costs: costs{suspend: time.Millisecond}, pageCache: 16 << 20,
	}
}

// All that was answered is there after the takeover, in each mode.
func TestTrade(t *testing.T) {
	for _, mode := range []xlft.Mode{xlft.ModeEvent, xlft.ModeStrict, xlft.ModeInterval} {
		s := short()
		s.pacing.Mode = mode
		s.pacing.EpochMax = 100 * time.Millisecond
		r, err := trade(s, 500, 0, 100*time.Millisecond, 500*time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		if r.lost > 0 || r.answered == 0 || r.perSecond == 0 || r.runs <= 0 || r.runs > 1 {
			t.Errorf("%s: %+v", mode, r)
		}
	}
}

// A backup that misses a page of each checkpoint is found out.
func TestTradeTorn(t *testing.T) {
	s := short()
	s.torn = true
	r, err := trade(s, 500, 0, 100*time.Millisecond, 500*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	if r.lost == 0 {
		t.Errorf("nothing is lost: %+v", r)
	}
}

func TestDirty(t *testing.T) {
	r, err := dirty(short(), 100, 3)
	if err != nil {
		t.Fatal(err)
	}
	if r.pause < time.Millisecond || r.ack < time.Millisecond {
		t.Errorf("%+v", r)
	}
}
