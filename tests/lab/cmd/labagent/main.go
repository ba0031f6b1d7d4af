// Labagent is the [agent] as it runs in a lab host.
package main

import (
	"fmt"
	"log"
	"net"

	"xlft/tests/lab/agent"
)

func main() {
	log.SetFlags(0)
	l, err := net.Listen("tcp", fmt.Sprintf(":%d", agent.Port))
	if err != nil {
		log.Fatal(err)
	}
	log.Fatal(agent.Serve(l))
}
