#pragma once

namespace test {

/// How often the program has called operator new.
long allocations();

/// Lets the next call of operator new fail if `which` is 1, the one after it if 2, and so on; none if 0.
void fail_allocation(long which);

}  // namespace test
