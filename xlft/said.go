package xlft

import (
	"strings"
	"sync"
	"unicode"
)

// Said remembers what was last said about something, so that what fails again
// and again in the same way is logged once.
type Said struct {
	mu   sync.Mutex
	last map[string]string
}

// New reports whether text is new for that subject. Texts that differ in numbers
// only, such as ports and durations, are the same.
func (s *Said) New(subject, text string) bool {
	text = strings.Map(func(r rune) rune {
		if unicode.IsDigit(r) {
			return -1
		}
		return r
	}, text)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last == nil {
		s.last = map[string]string{}
	}
	was, ok := s.last[subject]
	s.last[subject] = text
	return !ok || was != text
}

// Forget makes the next text for that subject new.
func (s *Said) Forget(subject string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.last, subject)
}
