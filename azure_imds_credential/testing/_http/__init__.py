"""The server behind the emulators: HTTP/1.1 messages, connections and a listening socket."""
