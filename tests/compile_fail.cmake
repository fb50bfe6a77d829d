# cmake -D MUST=compile|fail -D SOURCE=... -D COMPILER=... -D INCLUDES=... [-D FLAGS=...]
#   -P compile_fail.cmake
#
# Compiles a file, with FLAGS added. With MUST=fail FIT_MUST_FAIL is defined, and the compiler has to say, as part of an error, every
# sentence that the file announces by a line "// expect: SENTENCE".
cmake_minimum_required(VERSION 3.25)

list(TRANSFORM INCLUDES PREPEND -I)
set(define)
if(MUST STREQUAL "fail")
  set(define -DFIT_MUST_FAIL)
endif()
execute_process(COMMAND ${COMPILER} -std=c++20 -fsyntax-only ${define} ${FLAGS} ${INCLUDES} ${SOURCE}
  RESULT_VARIABLE result ERROR_VARIABLE output OUTPUT_VARIABLE output)
message(NOTICE "${output}")

if(MUST STREQUAL "compile")
  if(NOT result EQUAL 0)
    message(FATAL_ERROR "This must compile")
  endif()
  return()
endif()

if(result EQUAL 0)
  message(FATAL_ERROR "This must not compile")
endif()
file(STRINGS ${SOURCE} lines REGEX "^// expect: .")
if(NOT lines)
  message(FATAL_ERROR "There is no line '// expect: ' to say what the compiler has to print")
endif()
string(REGEX MATCHALL "error: [^\n]*" errors "${output}")
foreach(line IN LISTS lines)
  string(REPLACE "// expect: " "" sentence "${line}")
  string(FIND "${errors}" "${sentence}" position)
  if(position EQUAL -1)
    message(FATAL_ERROR "No error says: ${sentence}")
  endif()
endforeach()
