# Debian 12's xsimd names the library xtl, which it does not use or come with: programs would not link.
get_target_property(fit_xsimd_links xsimd INTERFACE_LINK_LIBRARIES)
if("xtl" IN_LIST fit_xsimd_links AND NOT TARGET xtl)
  list(REMOVE_ITEM fit_xsimd_links xtl)
  set_target_properties(xsimd PROPERTIES INTERFACE_LINK_LIBRARIES "${fit_xsimd_links}")
endif()
unset(fit_xsimd_links)
