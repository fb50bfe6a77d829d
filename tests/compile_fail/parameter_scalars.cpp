// expect: an object that names a Scalar must have parameters of that type alone
#include <fit/core/parameter.hpp>

struct Both {
  using Scalar = float;
  fit::Vector<float, 2> first;
#ifdef FIT_MUST_FAIL
  fit::Vector<double, 2> second;
#else
  fit::Vector<float, 2> second;
#endif
  static void visit(auto&& f, auto&... p) {
    f("first", p.first...);
    f("second", p.second...);
  }
};

fit::Index count(const Both& both) { return fit::count_parameters(both); }
