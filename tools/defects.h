/*
 * Forced into a copy of the C core by tools/sanitize and tools/valgrind (-include): the defect that the environment
 * names, at every close(), to see that they report it.
 */

#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int close_defectively(int fd)
{
	const char *defect = getenv("VHOSTNET_DEFECT");
	volatile int number = INT_MAX;
	char *volatile lost;

	if (defect && strcmp(defect, "overflow") == 0) {
		lost = malloc(8);
		lost[8] = 1;
		free(lost);
	}
	if (defect && strcmp(defect, "unset") == 0) {
		lost = malloc(8);
		if (lost[0])
			number--;
		free(lost);
	}
	if (defect && strcmp(defect, "undefined") == 0)
		number++;
	if (defect && strcmp(defect, "leak") == 0)
		lost = malloc(4711);
	if (defect && strcmp(defect, "fd") == 0)
		return 0;
	return close(fd);
}

#define close close_defectively
