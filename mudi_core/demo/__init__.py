"""The demo: two drawn characters go from photos to scored pictures, and the way there becomes one page."""
