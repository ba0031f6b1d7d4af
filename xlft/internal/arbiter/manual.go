package arbiter

import (
	"context"
	"fmt"

	"xlft/xlft"
)

// Manual is the arbiter of those who decide themselves: nobody wins a claim but by the
// other host's own word, and an operator's ("xl ft-resolve") takes the arbiter's place.
type Manual struct{ Asker }

// Claim is xlft.Arbiter's.
func (a Manual) Claim(ctx context.Context, c xlft.Claim) (bool, error) {
	if won, decided, err := a.consult(ctx, c); decided {
		return won, err
	}
	return false, operatorDecides(c)
}

// operatorDecides says who decides, and what to type.
func operatorDecides(c xlft.Claim) error {
	return fmt.Errorf("an operator decides: look at %s; if it is off, \"xl ft-resolve %s --peer-is-off\" here runs the domain here. \"xl ft-resolve %s\" shows what is known, and what else can be said", c.Peer, c.Domain, c.Domain)
}

func (Manual) String() string { return "manual" }
