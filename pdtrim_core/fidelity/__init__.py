"""How far a pair is from the dense model: along the dense model's own answers, along text, and on its own."""
