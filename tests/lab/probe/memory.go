package probe

import "fmt"

// Fill makes the guest write to so many new pages, each once, at so many a second. It returns when the guest has begun.
// Command: fill PAGES RATE. Answer: ok.
func (c *Client) Fill(pages, perSecond int) error {
	_, err := c.do("fill %d %d", pages, perSecond)
	return err
}

// Filled returns how many pages the guest has filled, and how many of those no longer hold what was written. Command:
// filled. Answer: FILLED WRONG.
func (c *Client) Filled() (filled, wrong int, err error) {
	line, err := c.do("filled")
	if err != nil {
		return 0, 0, err
	}
	if _, err := fmt.Sscan(line, &filled, &wrong); err != nil {
		return 0, 0, fmt.Errorf("probe: filled: answer %q: %w", line, err)
	}
	return filled, wrong, nil
}

// Memory returns the memory that the guest's kernel has, and what of it is free, in KiB. Command: memory. Answer: TOTAL
// FREE.
func (c *Client) Memory() (total, free uint64, err error) {
	line, err := c.do("memory")
	if err != nil {
		return 0, 0, err
	}
	if _, err := fmt.Sscan(line, &total, &free); err != nil {
		return 0, 0, fmt.Errorf("probe: memory: answer %q: %w", line, err)
	}
	return total, free, nil
}
