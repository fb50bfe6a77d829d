#pragma once

#define FIT_VERSION_MAJOR 0
#define FIT_VERSION_MINOR 1
#define FIT_VERSION_PATCH 0
