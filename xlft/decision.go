package xlft

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"

	"xlft/xlft/wire"
)

// A Word is what an operator says of a domain that waits for a decision: "xl
// ft-resolve". It stands for what the arbiter can't say.
type Word string

const (
	PeerIsOff Word = "peer-is-off" // the other host has no power: the domain is to run here
	TakeOver  Word = "take-over"   // the domain does not run on the other host, and will not: it is to run here
	GiveUp    Word = "give-up"     // the copy here is not to run
)

// Here reports whether the domain is to run on this host.
func (w Word) Here() bool { return w != GiveUp }

// Valid returns an error for what is no word.
func (w Word) Valid() error {
	switch w {
	case PeerIsOff, TakeOver, GiveUp:
		return nil
	}
	return fmt.Errorf("%q is no word that decides: %s, %s and %s are", w, PeerIsOff, TakeOver, GiveUp)
}

// A Decision is what one host knows of a domain that waits for an operator's word,
// or does not wait: then NotNow says why.
type Decision struct {
	Domain     string    `json:"domain"`
	Host       Side      `json:"host"` // what this host is to the domain
	Peer       string    `json:"peer"`
	State      string    `json:"state"`
	Since      time.Time `json:"since,omitzero"` // the state, or the question
	Generation uint64    `json:"generation"`     // 0: unknown
	Epoch      uint64    `json:"epoch"`          // of the newest whole checkpoint
	LastAck    time.Time `json:"last_ack,omitzero"`
	Arbiter    string    `json:"arbiter"`
	Said       string    `json:"said,omitempty"` // what the arbiter said last
	// Handed: this host told the other one to run the domain.
	Handed bool `json:"handed,omitempty"`
	// Shared: both hosts write to the same storage.
	Shared bool `json:"shared_storage,omitempty"`
	// Open, on a host without a copy: whether the domain ever ran here.
	Open    bool     `json:"open,omitempty"`
	NotNow  string   `json:"not_now,omitempty"`
	Answers []Answer `json:"answers,omitempty"` // of the other hosts
	// Word is what an operator has said, in the answer to that.
	Word Word `json:"word,omitempty"`
}

// An Answer is what another host says of a domain.
type Answer struct {
	Host       string    `json:"host"`
	Role       wire.Role `json:"role,omitempty"` // "": it gave none
	Generation uint64    `json:"generation,omitempty"`
	Error      string    `json:"error,omitempty"`
	// Lives: the host has power. It answers, or its kernel does.
	Lives bool `json:"lives"`
	// Deaf: its kernel says that no receiver listens there.
	Deaf bool `json:"deaf,omitempty"`
}

// AnswerOf asks another host what a domain is to it.
func AnswerOf(ctx context.Context, host string, ask func(context.Context) (wire.OwnerResult, error)) Answer {
	r, err := ask(ctx)
	if err == nil {
		return Answer{Host: host, Role: r.Role, Generation: r.Generation, Lives: true}
	}
	var refused *wire.Refusal
	deaf := errors.Is(err, syscall.ECONNREFUSED)
	return Answer{Host: host, Error: err.Error(), Lives: errors.As(err, &refused) || deaf, Deaf: deaf}
}

// says is the answer in words.
func (a Answer) says(domain string) string {
	switch {
	case a.Role == wire.RoleRunning:
		return fmt.Sprintf("%s answers that it has %s, in generation %d", a.Host, domain, a.Generation)
	case a.Role == wire.RoleNone:
		return fmt.Sprintf("%s answers that it neither runs %s nor has a copy of it", a.Host, domain)
	case a.Role != "":
		return fmt.Sprintf("%s answers that it does not know yet whether it is to run %s", a.Host, domain)
	case a.Lives:
		return fmt.Sprintf("%s has power, and can't say what it knows of %s: %s", a.Host, domain, a.Error)
	}
	return fmt.Sprintf("%s gives no answer: %s", a.Host, a.Error)
}

// String is the answer in words.
func (a Answer) String() string { return a.says("it") }

// Refuses says why a word can't be taken, by what is known; nil if it can. A host
// that answers is believed before any word about it: the word counts where nobody
// else can say anything.
func (d Decision) Refuses(w Word) error {
	if err := w.Valid(); err != nil {
		return err
	}
	if d.NotNow != "" {
		return fmt.Errorf("%s waits for no decision here: %s", d.Domain, d.NotNow)
	}
	if d.Open {
		return d.refusesOpen(w)
	}
	if w == GiveUp {
		return d.refusesGiveUp()
	}
	silent := slices.ContainsFunc(d.Answers, func(a Answer) bool { return !a.Lives })
	for _, a := range d.Answers {
		there := fmt.Sprintf("decide there: \"xl ft-resolve %s\" on %s", d.Domain, a.Host)
		switch {
		case a.Role == wire.RoleRunning:
			return fmt.Errorf("%s: %s", a.says(d.Domain), there)
		case w == PeerIsOff && a.Lives && (a.Role != wire.RoleNone || !silent):
			return fmt.Errorf("%s is not off: %s", a.Host, a.says(d.Domain))
		case a.Role == wire.RoleNone:
		case a.Role == "" && (!a.Lives || a.Deaf):
			// Without an answer the word counts. (A host with power whose receiver does
			// not run: the operator has looked what runs there.)
			if w == TakeOver && d.Shared {
				return fmt.Errorf("the disks of %s are on storage that both hosts write to, and what %s still writes would destroy them: take its power, then --%s", d.Domain, a.Host, PeerIsOff)
			}
		default:
			return fmt.Errorf("%s: %s", a.says(d.Domain), there)
		}
	}
	return nil
}

// refusesGiveUp: a copy is given up only if the other host may have one.
func (d Decision) refusesGiveUp() error {
	for _, a := range d.Answers {
		if a.Role != wire.RoleNone {
			return nil
		}
	}
	if len(d.Answers) == 0 {
		return nil
	}
	return fmt.Errorf("the copy here is the only one: %s", d.Answers[0].says(d.Domain))
}

// refusesOpen: this host has no copy, and is to say whether the domain ran here.
func (d Decision) refusesOpen(w Word) error {
	switch {
	case w == PeerIsOff:
		return fmt.Errorf("the question is not whether %s is off, but whether %s ran here: --%s says that it did and that older copies are outdated, --%s that it did not, or that this may be forgotten", d.Peer, d.Domain, TakeOver, GiveUp)
	case w == TakeOver && d.Generation == 0:
		return fmt.Errorf("%s has lost its record, so that only a domain that is here can outdate its copy: \"xl create\" %s here, from its newest disks", d.Peer, d.Domain)
	}
	return nil
}
