"""The demo: two drawn characters, from photos to scored pictures, on one page."""
