"""What the tests of official clients share: a tap between client and gateway, and strict readers of what came back."""
