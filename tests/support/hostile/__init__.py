"""What nobody should send, made from small seeds when a test asks for it."""
