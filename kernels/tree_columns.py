"""The columns of the tables that the kernels of tree attention read, one line per strip, item or cut."""

from triton.language import constexpr

# A strip is a run of computed rows of one request that look at the same keys; `strips` is written on the host.
REQUEST = constexpr(0)  # its line of the page table
ROW = constexpr(1)  # its first row in the packed forward
COUNT = constexpr(2)  # its rows; 0 for room that is unused
SEEN = constexpr(3)  # leading rows of the request that every row of the strip sees
STOP = constexpr(4)  # row of the request from which on no row of the strip sees any
START = constexpr(5)  # row of the request at which its tree begins
NODE = constexpr(6)  # node of its first row
TREE = constexpr(7)  # line of node 0 in `words` and `depths`; -1 for a chain
STRIP = constexpr(8)  # so many columns
# `items`: strip, first tile, tile behind the last, place among the results to be merged (-1: there is no other item).
# `cuts`, the strips with several items: strip, place of the first item's results, number of items, nothing.
ITEM = constexpr(4)  # so many columns
