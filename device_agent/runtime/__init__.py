"""One loaded model after the other: sessions, requests, and the processes that hold them."""
