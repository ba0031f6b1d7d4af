//go:build linux

package main

import (
	"fmt"
	"html"
	"math"
	"strings"
)

// Geometry of a plot, in pixels.
const (
	labelWidth = 220
	barsWidth  = 560
	barHeight  = 14
	gap        = 12
	legend     = 22
)

var colours = []string{"#444444", "#c0392b", "#e67e22", "#f1c40f", "#7fb3d5", "#2471a3", "#145a32"}

// plot draws a guest's rates in each setup beside those of the unprotected guest, on a logarithmic scale from a thousandth
// to twice.
func (r *results) plot(guest string) []byte {
	setups := r.setups(guest)
	var rows []string
	for _, row := range r.rows(guest) {
		if f, ok := r.find(guest, unprotected, row); ok && f.Rate > 0 {
			rows = append(rows, row)
		}
	}
	height := legend*(len(setups)+2) + len(rows)*(len(setups)*barHeight+gap) + 30
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="12">`+"\n", labelWidth+barsWidth+80, height)
	fmt.Fprintf(&b, `<rect width="100%%" height="100%%" fill="white"/>`+"\n")
	fmt.Fprintf(&b, `<text x="10" y="16" font-weight="bold">%s: rate, as a part of the unprotected guest's (logarithmic)</text>`+"\n", html.EscapeString(guest))
	y := legend
	for i, s := range setups {
		fmt.Fprintf(&b, `<rect x="10" y="%d" width="12" height="12" fill="%s"/><text x="28" y="%d">%s</text>`+"\n", y+4, colours[i%len(colours)], y+14, html.EscapeString(s))
		y += legend
	}
	y += gap
	const least, most = 0.001, 2.0
	at := func(v float64) int {
		v = math.Min(math.Max(v, least), most)
		return int(barsWidth * math.Log(v/least) / math.Log(most/least))
	}
	top := y
	for _, row := range rows {
		alone, _ := r.find(guest, unprotected, row)
		fmt.Fprintf(&b, `<text x="10" y="%d">%s</text>`+"\n", y+11, html.EscapeString(row))
		for i, s := range setups {
			if f, ok := r.find(guest, s, row); ok && f.Failed == "" {
				share := f.Rate / alone.Rate
				fmt.Fprintf(&b, `<rect x="%d" y="%d" width="%d" height="%d" fill="%s"/><text x="%d" y="%d" font-size="10">%.3g</text>`+"\n",
					labelWidth, y, max(at(share), 1), barHeight-2, colours[i%len(colours)], labelWidth+max(at(share), 1)+4, y+10, share)
			}
			y += barHeight
		}
		y += gap
	}
	for _, v := range []float64{0.001, 0.01, 0.1, 1} {
		x := labelWidth + at(v)
		fmt.Fprintf(&b, `<line x1="%d" y1="%d" x2="%d" y2="%d" stroke="#999" stroke-dasharray="2,3"/><text x="%d" y="%d" font-size="10">%g</text>`+"\n", x, top-6, x, y, x-6, y+12, v)
	}
	b.WriteString("</svg>\n")
	return []byte(b.String())
}
