package wire

import (
	"context"
	"fmt"
	"net"
	"time"
)

// A Dialer opens a connection to a peer.
type Dialer func(ctx context.Context) (net.Conn, error)

// Bounds of the exchanges before a session stands.
const (
	// GreetTimeout bounds HELLO and its answer.
	GreetTimeout = 10 * time.Second
	// OfferTimeout bounds the backup's look at an offer, for which it asks its
	// hypervisor.
	OfferTimeout = 30 * time.Second
	// OwnerTimeout bounds the question who owns a domain. Its output is held
	// meanwhile, and if the backup is silent the arbiter decides anyway.
	OwnerTimeout = 5 * time.Second
)

// Open dials a peer and greets it. The answer says what both sides can do.
func Open(ctx context.Context, dial Dialer, kind ConnKind, session, software string) (*Conn, Hello, error) {
	return open(ctx, dial, Hello{Kind: kind, Session: session, Software: software})
}

// OpenData opens the connection that carries the epochs of a session, whose pages this side
// keeps pageCache bytes of at most. How many both sides keep is in the answer: 0 if the peer
// has no FeatureLines.
func OpenData(ctx context.Context, dial Dialer, session, software string, pageCache int64) (*Conn, Hello, error) {
	return open(ctx, dial, Hello{Kind: KindData, Session: session, Software: software, PageCache: pageCache})
}

func open(ctx context.Context, dial Dialer, hello Hello) (*Conn, Hello, error) {
	raw, err := dial(ctx)
	if err != nil {
		return nil, Hello{}, fmt.Errorf("open %s connection: %w", hello.Kind, err)
	}
	c := NewConn(raw)
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	h, err := greet(c, hello, GreetTimeout)
	if err != nil {
		c.Close()
		return nil, h, fmt.Errorf("open %s connection: %w", hello.Kind, err)
	}
	return c, h, nil
}

// OpenControl opens the control connection of a new session and offers the
// backup a domain. It returns once the backup has accepted; the error is a
// *Refusal if it has not.
func OpenControl(ctx context.Context, dial Dialer, software, session string, o Offer) (*Control, error) {
	c, _, err := Open(ctx, dial, KindControl, session, software)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	end := within(c, OfferTimeout)
	if err = c.WriteJSON(TypeOffer, 0, o); err == nil {
		err = c.Expect(TypeAccept, nil)
	}
	end()
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("offer %s: %w", o.Domain, err)
	}
	return NewControl(c, o.FailureTimeout), nil
}

// OpenDisk opens the connection that carries a disk's writes in a session that
// the backup has accepted. The answers say what both sides can do, and how much the
// backup holds back.
func OpenDisk(ctx context.Context, dial Dialer, software, session string, d DiskOpen) (net.Conn, Hello, DiskReady, error) {
	var ready DiskReady
	c, h, err := Open(ctx, dial, KindDisk, session, software)
	if err != nil {
		return nil, h, ready, fmt.Errorf("disk %s: %w", d.VDev, err)
	}
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	end := within(c, OfferTimeout)
	if err = c.WriteJSON(TypeDisk, 0, d); err == nil {
		err = c.Expect(TypeDiskReady, &ready)
	}
	end()
	if err != nil {
		c.Close()
		return nil, h, ready, fmt.Errorf("disk %s: %w", d.VDev, err)
	}
	return c.Conn, h, ready, nil
}

// Ask opens a query connection, sends v as a frame of type t, without a body if v is nil, and
// reads the answer, a frame of type answer, into out.
func Ask(ctx context.Context, dial Dialer, software string, t Type, v any, answer Type, out any) error {
	c, _, err := Open(ctx, dial, KindQuery, "", software)
	if err != nil {
		return err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	defer within(c, OfferTimeout)()
	if v == nil {
		err = c.WriteFrame(t, 0, nil)
	} else {
		err = c.WriteJSON(t, 0, v)
	}
	if err != nil {
		return fmt.Errorf("ask peer: %w", err)
	}
	if err := c.Expect(answer, out); err != nil {
		return fmt.Errorf("ask peer: %w", err)
	}
	return nil
}
