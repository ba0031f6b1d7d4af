package xlft

import "context"

// An Output holds back what a domain sends, by epoch.
type Output interface {
	// Seal ends the open epoch, whose number is given, while the domain is
	// suspended. The first Seal starts the holding.
	Seal(epoch uint64) error
	// Release lets a sealed epoch out.
	Release(epoch uint64) error
	// Drain waits until all that the suspended domain sent has left, so that
	// nothing of it is missing, or gets in the way, when it runs on elsewhere.
	// What was sealed is released.
	Drain(ctx context.Context) error
	// Abandon lets everything out and stops holding.
	Abandon() error
	// Discard drops what is held and takes the gate down. The domain is gone.
	Discard() error
	// Close takes the gate down without losing a packet.
	Close() error
	// Held returns how many bytes wait, and how many fit at most.
	Held() (held, limit uint64, err error)
}
