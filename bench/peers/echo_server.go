// gorilla/websocket on net/http, an echo server: PORT.
package main

import (
	"context"
	"log"
	"net"
	"net/http"
	"os"
	"syscall"

	"github.com/gorilla/websocket"
)

const soReuseport = 15 // socket(7); package syscall has it only for newer architectures

// Several processes of it share the port.
func share(_, _ string, raw syscall.RawConn) error {
	var failed error
	err := raw.Control(func(fd uintptr) {
		failed = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, soReuseport, 1)
	})
	if err != nil {
		return err
	}
	return failed
}

func echo(upgrader *websocket.Upgrader) http.HandlerFunc {
	return func(writer http.ResponseWriter, request *http.Request) {
		connection, err := upgrader.Upgrade(writer, request, nil)
		if err != nil {
			return // it has answered with the status
		}
		defer connection.Close()
		for {
			kind, message, err := connection.ReadMessage()
			if err != nil || connection.WriteMessage(kind, message) != nil {
				return
			}
		}
	}
}

func main() {
	configuration := net.ListenConfig{Control: share}
	address := net.JoinHostPort("127.0.0.1", os.Args[1])
	listener, err := configuration.Listen(context.Background(), "tcp", address)
	if err != nil {
		log.Fatal(err)
	}
	log.Fatal(http.Serve(listener, echo(&websocket.Upgrader{})))
}
