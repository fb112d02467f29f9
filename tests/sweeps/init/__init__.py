"""The sweep file that suits somebody's photos."""
