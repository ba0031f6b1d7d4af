package savestream_test

import (
	"bytes"
	"fmt"
	"log"

	"xlft/savestream"
)

// A replica may be restored from a stream up to its last checkpoint; the bytes
// behind that checkpoint are a part of a state. Here the stream arrives in
// pieces of 1000 bytes and breaks off in the third epoch.
func ExampleScanner() {
	stream := checkpointedStream(3)
	stream = stream[:len(stream)-100]

	var s savestream.Scanner
	for len(stream) > 0 {
		piece := stream[:min(1000, len(stream))]
		n, mark, err := s.Scan(piece)
		if err != nil {
			log.Fatal(err)
		}
		stream = stream[n:] // the rest of the piece is for the next call
		if mark == savestream.MarkCheckpoint {
			fmt.Printf("checkpoint %d ends at byte %d: %d page\n", s.Checkpoints(), s.Offset(), s.Stats().Pages)
		}
	}
	fmt.Println(s.Close())
	// Output:
	// checkpoint 1 ends at byte 4200: 1 page
	// checkpoint 2 ends at byte 8352: 1 page
	// savestream: end of stream at offset 12404: unexpected EOF
}

// checkpointedStream is a stream of a PVH domain with one page and n epochs.
func checkpointedStream(n int) []byte {
	var b bytes.Buffer
	enc := savestream.NewEncoder(&b, savestream.Header{Version: 3, Type: savestream.HVM, XenMajor: 4, XenMinor: 17})
	check := func(err error) {
		if err != nil {
			log.Fatal(err)
		}
	}
	check(enc.Encode(savestream.Record{Type: savestream.StaticDataEnd}))
	for range n {
		check(enc.WritePages([]savestream.PageEntry{{PFN: 0x1000}}, make([]byte, savestream.PageSize)))
		check(enc.Encode(savestream.Record{Type: savestream.HVMContext, Body: []byte("registers")}))
		check(enc.Encode(savestream.Record{Type: savestream.Checkpoint}))
	}
	return b.Bytes()
}
