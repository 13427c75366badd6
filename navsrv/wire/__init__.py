"""What bytes *mean*: OpenIGTLink framing and messages, and the guidance frame.  Refuses sockets, threads and clocks."""
