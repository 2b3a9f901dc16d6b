"""The same run every night, unattended: one night a date, from the policy that the last one left.

    <store>/<run>/config.json            the config of the newest night
                  lease/                 one night at a time, with a fencing epoch
                  promotions/            which policy is current, night after night
                  nights/<date>.json     what became of a night; written last, once
                  nights/<date>/         the night itself: a run like any other, with taken.parquet beside it
                  seen/<date>.parquet    the prompts that a night took: what is new is new against these

Whatever is started however often, a date has one night: its record is put once, and the lease lets in one at a time.
"""
