package arbiter

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"xlft/xlft"
)

// A Ledger is the xlft.Arbiter of a place that both hosts reach, in which the claim
// that is written first stays: of a generation of a domain there is one, and who
// wrote it has won. Claims are never taken back and never run out.
//
// Unlike with Fence, nothing happens to the other host, and a domain that was handed
// over can be decided on: both sides write their claim.
type Ledger struct {
	Asker
	// Kind is the arbiter's name: that of arbiter.type.
	Kind string
	// Host is this host's name, as its peers know it.
	Host string
	// Register keeps the claims.
	Register Register

	mu sync.Mutex
	id string // which register it was the first time; "" before
}

// A Register keeps the value that was first written under a key. Both methods return
// in bounded time, and say which of all registers of its kind it is: two hosts that
// write to different ones would both be first.
type Register interface {
	// First writes a value under a key that has none, and returns the value that the
	// key has then. An error means that nothing is known: the value may be there, or
	// may yet come to be there.
	First(ctx context.Context, key Key, value []byte) (there []byte, id string, err error)
	// Probe says why First could not work now, having changed nothing.
	Probe(ctx context.Context) (id string, err error)
	// Where names the place of a key, and how an operator removes it.
	Where(key Key) (place, remove string)
}

// A Key is what a claim is about. The UUID is there because a domain that is made
// anew may count its generations anew.
type Key struct {
	Domain     string
	UUID       string
	Generation uint64
}

// parts are names that a path may have.
func (k Key) parts() []string {
	return []string{xlft.FileName(k.Domain), xlft.FileName(k.UUID), strconv.FormatUint(k.Generation, 10)}
}

// An entry is a claim as a register has it.
type entry struct {
	Domain     string    `json:"domain"`
	UUID       string    `json:"uuid"`
	Generation uint64    `json:"generation"`
	Side       xlft.Side `json:"side"`
	Host       string    `json:"host"`
	Peer       string    `json:"peer"`
	At         time.Time `json:"at"` // for people: no decision rests on it
}

func (a *Ledger) String() string { return a.Kind }

// Claim is xlft.Arbiter's.
func (a *Ledger) Claim(ctx context.Context, c xlft.Claim) (bool, error) {
	if c.Domain == "" || c.UUID == "" || c.Generation == 0 || c.Peer == "" || c.Peer == a.Host {
		return false, fmt.Errorf("%s: a claim by %q against %q of domain %q, UUID %q, generation %d names nothing that two hosts could agree on", a.Kind, a.Host, c.Peer, c.Domain, c.UUID, c.Generation)
	}
	reached, end := a.outside(ctx, c)
	defer end()
	if !c.Handed {
		if won, decided, err := a.consult(ctx, c); decided {
			return won, err
		}
	}
	if err := reached(); err != nil {
		return false, err
	}
	select {
	case <-c.Withdrawn:
		return false, xlft.ErrWithdrawn
	default:
	}
	if _, err := a.Identity(ctx); err != nil {
		return false, err
	}
	k := Key{c.Domain, c.UUID, c.Generation}
	mine := entry{k.Domain, k.UUID, k.Generation, c.Side, a.Host, c.Peer, time.Now().UTC()}
	value, err := json.Marshal(mine)
	if err != nil {
		return false, err
	}
	there, id, err := a.Register.First(ctx, k, value)
	if err != nil {
		return false, fmt.Errorf("%s: %w", a.Kind, err)
	}
	if err := a.same(id); err != nil {
		return false, err
	}
	return a.judge(k, there, mine)
}

// judge says whether the claim that a register has is one's own. One that is neither
// side's decides nothing.
func (a *Ledger) judge(k Key, there []byte, mine entry) (bool, error) {
	place, remove := a.Register.Where(k)
	var e entry
	if err := json.Unmarshal(there, &e); err != nil {
		return false, fmt.Errorf("%s: %s is no claim (%w): look at it, and remove it with %q if nobody can have won by it", a.Kind, place, err, remove)
	}
	about := e.Domain == mine.Domain && e.UUID == mine.UUID && e.Generation == mine.Generation
	switch {
	case about && e.Side == mine.Side && e.Host == mine.Host && e.Peer == mine.Peer:
		return true, nil
	case about && e.Side == other(mine.Side) && e.Host == mine.Peer && e.Peer == mine.Host:
		return false, nil
	}
	return false, fmt.Errorf("%s: %s has a claim of %s against %s, as %s of %s in generation %d, and this is %s's against %s, as %s: it is of an earlier life of the domain, or host.name differs from the name of the [peer] table on the other host. "+
		"If it is old, remove it with %q", a.Kind, place, e.Host, e.Peer, e.Side, e.Domain, e.Generation, mine.Host, mine.Peer, mine.Side, remove)
}

func other(s xlft.Side) xlft.Side {
	if s == xlft.Primary {
		return xlft.Backup
	}
	return xlft.Primary
}

// errReplaced: the register is not the one of earlier.
var errReplaced = errors.New("it is another one than when this program began: both hosts have to agree on it anew. End the protection with \"xl ft-stop\", restart xlft-receiver on both hosts, and begin it again")

// same compares a register with the one of the first time.
func (a *Ledger) same(id string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.id == "" {
		a.id = id
	}
	if id == "" || a.id != id {
		return fmt.Errorf("%s %q, was %q: %w", a.Kind, id, a.id, errReplaced)
	}
	return nil
}

// Succeed makes a take the place of an earlier arbiter: what hosts agreed on before a
// configuration was read anew still has to be the register.
func (a *Ledger) Succeed(earlier xlft.Arbiter) {
	was, ok := earlier.(*Ledger)
	if !ok {
		return
	}
	was.mu.Lock()
	id := was.id
	was.mu.Unlock()
	a.mu.Lock()
	a.id = id
	a.mu.Unlock()
}

// Identity is xlft.ArbiterIdentifier's.
func (a *Ledger) Identity(ctx context.Context) (string, error) {
	a.mu.Lock()
	id := a.id
	a.mu.Unlock()
	if id != "" {
		return id, nil
	}
	id, err := a.Register.Probe(ctx)
	if err != nil {
		return "", fmt.Errorf("%s: %w", a.Kind, err)
	}
	return id, a.same(id)
}

// Check is xlft.ArbiterChecker's. All peers have the same register.
func (a *Ledger) Check(ctx context.Context, _ string) error {
	if err := a.reaches(ctx); err != nil {
		return err
	}
	id, err := a.Register.Probe(ctx)
	if err != nil {
		return fmt.Errorf("%s: %w", a.Kind, err)
	}
	return a.same(id)
}
