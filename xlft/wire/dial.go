package wire

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"net"
	"time"
)

// DialDisk opens the connection that carries a disk's writes in a session that
// the backup has accepted. The answer says how much the backup holds back.
func DialDisk(ctx context.Context, dial Dialer, software, session string, d Disk) (net.Conn, DiskReady, error) {
	var ready DiskReady
	c, _, err := Open(ctx, dial, DiskKind, session, software)
	if err != nil {
		return nil, ready, fmt.Errorf("disk %s: %w", d.VDev, err)
	}
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	c.SetDeadline(time.Now().Add(OfferTimeout))
	if err = c.WriteJSON(TypeDisk, 0, d); err == nil {
		err = c.Expect(TypeDiskReady, &ready)
	}
	if err != nil {
		c.Close()
		return nil, ready, fmt.Errorf("disk %s: %w", d.VDev, err)
	}
	c.SetDeadline(time.Time{})
	return c.Conn, ready, nil
}

// A Dialer opens a connection to the backup.
type Dialer func(ctx context.Context) (net.Conn, error)

// castagnoli is the polynomial of an epoch's checksum; processors compute it.
var Castagnoli = crc32.MakeTable(crc32.Castagnoli)

// greetTimeout bounds every exchange before a session stands.
const GreetTimeout = 10 * time.Second

// offerTimeout bounds the backup's look at an offer, which asks its hypervisor.
const OfferTimeout = 30 * time.Second

// ownerTimeout bounds the question who owns a domain: meanwhile its output is
// held, and a silent backup leaves it to the arbiter anyway.
const OwnerTimeout = 5 * time.Second

// connect dials and greets.
func Open(ctx context.Context, dial Dialer, kind ConnKind, session, software string) (*Conn, Hello, error) {
	raw, err := dial(ctx)
	if err != nil {
		return nil, Hello{}, fmt.Errorf("open %s connection: %w", kind, err)
	}
	c := NewConn(raw)
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	h, err := Greet(c, kind, session, software, GreetTimeout)
	if err != nil {
		c.Close()
		return nil, h, fmt.Errorf("open %s connection: %w", kind, err)
	}
	return c, h, nil
}

// errHungUp is a link that its own side closed.
var ErrHungUp = errors.New("hung up")

// heartbeatsPerTimeout: so many heartbeats must be missed in a row before the
// other side is suspected.
const HeartbeatsPerTimeout = 5

// silent words a read error; silence is the deadline that was set.
func Silent(err error, silence time.Duration) error {
	var ne net.Error
	if errors.As(err, &ne) && ne.Timeout() {
		return fmt.Errorf("silent for %v", silence)
	}
	return fmt.Errorf("connection broke: %w", err)
}

// Ask opens a query connection, sends v as a frame of type t and reads the
// answer, a frame of type answer, into out.
func Ask(ctx context.Context, dial Dialer, software string, t Type, v any, answer Type, out any) error {
	c, _, err := Open(ctx, dial, Query, "", software)
	if err != nil {
		return err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	c.SetDeadline(time.Now().Add(OfferTimeout))
	if err := c.WriteJSON(t, 0, v); err != nil {
		return fmt.Errorf("ask peer: %w", err)
	}
	if err := c.Expect(answer, out); err != nil {
		return fmt.Errorf("ask peer: %w", err)
	}
	return nil
}
