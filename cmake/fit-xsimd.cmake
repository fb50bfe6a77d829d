# Debian 12's xsimd names the library xtl, which it does not use or come with: programs would not link.
get_target_property(fit_xsimd_links xsimd INTERFACE_LINK_LIBRARIES)
list(FIND fit_xsimd_links xtl fit_xsimd_xtl)
if(NOT fit_xsimd_xtl EQUAL -1 AND NOT TARGET xtl)
  list(REMOVE_ITEM fit_xsimd_links xtl)
  set_target_properties(xsimd PROPERTIES INTERFACE_LINK_LIBRARIES "${fit_xsimd_links}")
endif()
unset(fit_xsimd_links)
unset(fit_xsimd_xtl)

# The version of one that was found.
set(fit_xsimd_trouble "")
if(xsimd_VERSION AND xsimd_VERSION VERSION_LESS 8.1)
  set(fit_xsimd_trouble "fit needs xsimd 8.1 or newer, and what was found in ${xsimd_DIR} is ${xsimd_VERSION}")
endif()
