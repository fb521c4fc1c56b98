"""How well methods, peers and questions do on real sets."""
