"""A sweep file for somebody's photos: what they carry, published settings, and what a time budget holds."""
