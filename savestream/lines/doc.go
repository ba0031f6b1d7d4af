// Package lines codes a checkpointed stream by what changed: of a page that was sent before,
// only the lines of 64 bytes that differ. A program that writes to a page seldom writes to
// much of it.
//
// An Encoder and a Decoder keep the pages that were sent last, the same ones in the same
// order, so that neither tells the other what it has. Nothing of this is seen by the stream's
// reader: the Decoder gives back the stream byte for byte. Should the two ever differ, the
// stream does too, which the checksum of each epoch says.
//
// The coded form is a sequence of items, each a byte and what follows it:
//
//	0 literal  length (uvarint), bytes: all of the stream that is not the content of a page
//	1 same     the page is as it was
//	2 zero     the page is all zeroes
//	3 changed  bitmap u64 (line n is bit n, little endian), the lines whose bits are set
//	4 page     4096 bytes
//
// A page that neither side has counts as all zeroes.
package lines
