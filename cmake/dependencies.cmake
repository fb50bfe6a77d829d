# Each library is looked for with find_package first, and fetched at a fixed version where it is missing.
include(FetchContent)

# fit_find_headers(PACKAGE TARGET REPOSITORY TAG INCLUDE_DIRECTORY [VERSION]): a library of headers. Fetched, it is its
# headers only: its own build files would bring their tests, options and install rules along.
function(fit_find_headers package target repository tag include)
  if(TARGET ${target})
    return()
  endif()
  FetchContent_Declare(${package} GIT_REPOSITORY ${repository} GIT_TAG ${tag} GIT_SHALLOW ON
    SOURCE_SUBDIR none FIND_PACKAGE_ARGS ${ARGN})
  FetchContent_MakeAvailable(${package})
  if(NOT TARGET ${target})
    FetchContent_GetProperties(${package} SOURCE_DIR source)
    add_library(${target} INTERFACE IMPORTED GLOBAL)
    set_property(GLOBAL APPEND PROPERTY FIT_FETCHED ${package})
    target_include_directories(${target} INTERFACE ${source}/${include})
  endif()
endfunction()

find_package(Threads REQUIRED)
fit_find_headers(Eigen3 Eigen3::Eigen https://gitlab.com/libeigen/eigen.git 3.4.0 . 3.4)
# xsimd's packages refuse every other major version than the one asked for, and 8.1 to 13 will do.
fit_find_headers(xsimd xsimd https://github.com/xtensor-stack/xsimd.git 13.2.0 include)
include(cmake/fit-xsimd.cmake)
if(fit_xsimd_trouble)
  message(FATAL_ERROR "${fit_xsimd_trouble}; -DCMAKE_DISABLE_FIND_PACKAGE_xsimd=ON fetches one that will do")
endif()
fit_find_headers(nlohmann_json nlohmann_json::nlohmann_json https://github.com/nlohmann/json.git v3.11.3 include 3.11)

# Catch2 2.13 or 3.
function(fit_find_catch)
  FetchContent_Declare(Catch2 GIT_REPOSITORY https://github.com/catchorg/Catch2.git GIT_TAG v3.7.1 GIT_SHALLOW ON
    SYSTEM FIND_PACKAGE_ARGS)
  set(CMAKE_POLICY_DEFAULT_CMP0077 NEW)
  set(CATCH_INSTALL_DOCS OFF)
  FetchContent_MakeAvailable(Catch2)
endfunction()

function(fit_find_benchmark)
  FetchContent_Declare(benchmark GIT_REPOSITORY https://github.com/google/benchmark.git GIT_TAG v1.9.1 GIT_SHALLOW ON
    SYSTEM FIND_PACKAGE_ARGS)
  set(CMAKE_POLICY_DEFAULT_CMP0077 NEW)
  set(BENCHMARK_ENABLE_TESTING OFF)
  set(BENCHMARK_ENABLE_INSTALL OFF)
  FetchContent_MakeAvailable(benchmark)
endfunction()

function(fit_find_cli)
  fit_find_headers(CLI11 CLI11::CLI11 https://github.com/CLIUtils/CLI11.git v2.4.1 include 2.1)
endfunction()

function(fit_find_example_libraries)
  fit_find_cli()
  find_package(ZLIB REQUIRED)
  find_package(PNG REQUIRED)
  find_package(JPEG REQUIRED)
endfunction()

# A Python that has NumPy, or nothing.
function(fit_find_numpy python)
  set(${python} "" PARENT_SCOPE)
  find_program(FIT_PYTHON python3)
  foreach(candidate ${FIT_PYTHON} /usr/bin/python3)
    execute_process(COMMAND ${candidate} -c "import numpy" RESULT_VARIABLE failed OUTPUT_QUIET ERROR_QUIET)
    if(NOT failed)
      set(${python} ${candidate} PARENT_SCOPE)
      return()
    endif()
  endforeach()
endfunction()
