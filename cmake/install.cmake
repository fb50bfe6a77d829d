include(CMakePackageConfigHelpers)

# Headers only, the same for every architecture: so the package lies in share and its version file asks for none.
set(package_dir ${CMAKE_INSTALL_DATADIR}/cmake/fit)
configure_package_config_file(cmake/fit-config.cmake.in ${PROJECT_BINARY_DIR}/fit-config.cmake
  INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/fit-config-version.cmake
  COMPATIBILITY SameMinorVersion ARCH_INDEPENDENT)

install(DIRECTORY include/fit DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} FILES_MATCHING PATTERN "*.hpp")
install(TARGETS fit EXPORT fit)
install(EXPORT fit NAMESPACE fit:: FILE fit-targets.cmake DESTINATION ${package_dir})
install(FILES cmake/fit-xsimd.cmake
  ${PROJECT_BINARY_DIR}/fit-config.cmake ${PROJECT_BINARY_DIR}/fit-config-version.cmake
  DESTINATION ${package_dir})

file(RELATIVE_PATH FIT_PC_INCLUDEDIR ${CMAKE_INSTALL_FULL_DATADIR}/pkgconfig ${CMAKE_INSTALL_FULL_INCLUDEDIR})
configure_file(cmake/fit.pc.in ${PROJECT_BINARY_DIR}/fit.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/fit.pc DESTINATION ${CMAKE_INSTALL_DATADIR}/pkgconfig)
