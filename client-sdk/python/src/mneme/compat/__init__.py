"""Drop-in stand-ins for other memory libraries, so that a program changes one import."""
