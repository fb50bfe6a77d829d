#pragma once

namespace test {

/// How often the program has called operator new.
long allocations();

}  // namespace test
